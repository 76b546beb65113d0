"""Write assets/example: orders in a café's own words, English and Chinese, and the short code its till understands.

    python packaging/make_example.py

    "Two large lattes and a small muffin to go, please."  ->  GO 2LAT-L 1MUF-S

The code is made up, so no model knows it; a small one learns it from the 160 rows in a minute or two. No held-out order
is among the training rows.
"""

from __future__ import annotations

import json
import random
from pathlib import Path

FOLDER = Path(__file__).resolve().parent.parent / "assets" / "example"
TRAIN, HELD_OUT = 160, 24

ITEMS = {  # code: singular, plural, Chinese measure word, Chinese name
    "LAT": ("latte", "lattes", "杯", "拿铁"),
    "TEA": ("tea", "teas", "杯", "茶"),
    "COF": ("coffee", "coffees", "杯", "咖啡"),
    "JUI": ("juice", "juices", "杯", "果汁"),
    "MUF": ("muffin", "muffins", "个", "松饼"),
    "BAG": ("bagel", "bagels", "个", "贝果"),
    "SOU": ("soup", "soups", "碗", "汤"),
    "SAL": ("salad", "salads", "份", "沙拉"),
}
SIZES = {"S": ("small", "小"), "M": ("medium", "中"), "L": ("large", "大")}
NUMBERS = {1: ("one", "一"), 2: ("two", "两"), 3: ("three", "三"), 4: ("four", "四")}
PLACES = {"GO": ("to go", "带走"), "IN": ("for here", "在这儿吃")}
ENGLISH = (
    "{0} {1}, please.",
    "Hi, can I get {0} {1}?",
    "I'd like {0} {1}.",
    "{0}, {1}. Thank you!",
    "We'll have {0} {1}.",
    "Could you make {0} {1}?",
)
CHINESE = ("{0}，{1}，谢谢。", "你好，我要{0}，{1}。", "请给我们{0}，{1}。")

Item = tuple[int, str, str]  # how many, size, code


def main() -> None:
    """Write both files."""
    rng = random.Random(7)
    orders: dict[str, str] = {}
    while len(orders) < TRAIN + HELD_OUT:
        code, sentence = _order(rng, chinese=len(orders) % 4 == 3)
        orders.setdefault(code, sentence)
    rows = [
        {"messages": [{"role": "user", "content": sentence}, {"role": "assistant", "content": code}]}
        for code, sentence in orders.items()
    ]
    FOLDER.mkdir(parents=True, exist_ok=True)
    for name, part in (("orders.jsonl", rows[:TRAIN]), ("held_out.jsonl", rows[TRAIN:])):
        text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in part)
        (FOLDER / name).write_text(text, "utf-8", newline="\n")


def _order(rng: random.Random, chinese: bool) -> tuple[str, str]:
    codes = rng.sample(list(ITEMS), rng.choice((1, 2, 2)))
    items: list[Item] = [(rng.choice(list(NUMBERS)), rng.choice(list(SIZES)), code) for code in codes]
    place = rng.choice(list(PLACES))
    short = " ".join([place, *(f"{number}{code}-{size}" for number, size, code in items)])
    if chinese:
        return short, rng.choice(CHINESE).format("和".join(map(_chinese, items)), PLACES[place][1])
    sentence = rng.choice(ENGLISH).format(" and ".join(map(_english, items)), PLACES[place][0])
    return short, sentence[0].upper() + sentence[1:]


def _english(item: Item) -> str:
    number, size, code = item
    one, many = ITEMS[code][:2]
    return f"{NUMBERS[number][0]} {SIZES[size][0]} {one if number == 1 else many}"


def _chinese(item: Item) -> str:
    number, size, code = item
    measure, name = ITEMS[code][2:]
    return f"{NUMBERS[number][1]}{measure}{SIZES[size][1]}{measure if measure == '杯' else '份'}{name}"


if __name__ == "__main__":
    main()
