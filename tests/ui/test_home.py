from __future__ import annotations

from playwright.sync_api import Route, expect

from ui.conftest import App


def test_a_first_look_says_what_to_do_and_what_the_machine_has(app: App) -> None:
    page = app.open()
    expect(page.locator("#page-home h1")).to_have_text("Fine-tune a model on your own computer")
    expect(page.locator("#home .steps li.next strong")).to_have_text("Choose a base model")
    expect(page.locator("#home .facts dt").first).to_have_text("Compute device")
    assert app.hosts == {f"127.0.0.1:{app.port}"}


def test_a_page_whose_script_was_lost_is_loaded_once_more(app: App) -> None:
    app.expected += [
        "net::ERR_FAILED",
        "Failed to fetch dynamically imported module",
        "Unable to preload CSS",
    ]
    page = app.open()
    lost: list[str] = []

    def lose(route: Route) -> None:
        lost.append(route.request.url)
        route.abort()

    scripts = f"{app.address}/assets/*.js"
    page.route(scripts, lose)
    page.clock.install()
    page.reload()
    expect(page.locator("#cover")).to_be_visible()
    page.unroute(scripts)
    assert lost
    page.clock.fast_forward(31_000)
    page.wait_for_selector("#nav [role=tab]")
    expect(page.locator("#cover")).to_have_count(0)
    assert page.evaluate("sessionStorage.getItem('ftl-again')") is None


def test_a_page_whose_coming_was_not_heard_is_drawn_all_the_same(app: App) -> None:
    page = app.open()
    expect(page.locator("#home .facts dt").first).to_be_visible()
    asked = page.evaluate(
        "window.gradio_config.dependencies.filter((d) => d.targets.some((t) => t[1] === 'select')).map((d) => d.id)"
    )
    lost: list[str] = []

    def lose(route: Route) -> None:
        if (route.request.post_data_json or {}).get("fn_index") in asked:
            lost.append(route.request.url)
            route.fulfill(json={"event_id": "nobody's"})
        else:
            route.fallback()

    page.route("**/queue/join*", lose)
    page.click("#nav [role=tablist]:not(.visually-hidden) [data-tab-id=runs]")
    expect(page.locator("#page-runs .page-header")).to_be_visible()
    assert len(lost) == 1


def test_a_press_counts_though_the_view_is_drawn_anew_under_it(app: App) -> None:
    page = app.open()
    begin = page.locator("#home [data-do=go]", has_text="Get started")
    box = begin.bounding_box()
    assert box is not None
    page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    page.mouse.down()
    begin.evaluate("(button) => button.replaceWith(button.cloneNode(true))")
    page.mouse.up()
    expect(page.locator("#page-model .page-header")).to_be_visible()
