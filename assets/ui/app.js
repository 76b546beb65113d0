// The page's own behaviour beside Gradio's: which window this is, light and dark, buttons of views, charts under the mouse,
// whether the server lives. Nothing here asks any address but the server's own.
"use strict";
window.ftl = (() => {
  const config = window.ftlConfig || {};

  // ── light and dark ──────────────────────────────────────────────────────────────────────────────────────
  const systemDark = window.matchMedia("(prefers-color-scheme: dark)");
  function applyTheme() {
    const dark = config.theme === "dark" || (config.theme === "system" && systemDark.matches);
    document.documentElement.style.colorScheme = dark ? "dark" : "light";
    if (document.body && document.body.classList.contains("dark") !== dark) document.body.classList.toggle("dark", dark);
  }
  systemDark.addEventListener("change", applyTheme);
  document.documentElement.lang = config.lang === "zh" ? "zh-CN" : "en";
  document.addEventListener("DOMContentLoaded", () => {
    applyTheme();
    new MutationObserver(applyTheme).observe(document.body, { attributes: true, attributeFilter: ["class"] });
  });
  applyTheme();

  // ── until the page is made, what the splash showed before it stays in view, rather than the library's own ────────────
  function cover() {
    const box = document.createElement("div");
    box.id = "cover";
    box.setAttribute("role", "status");
    const made = (tag, text) => Object.assign(document.createElement(tag), { textContent: text });
    const [name, words] = config.splash || ["", ""];
    const bar = made("div", "");
    bar.className = "bar";
    bar.append(document.createElement("i"));
    box.append(Object.assign(document.createElement("img"), { src: "ftl/icon.svg", alt: "" }), made("strong", name), bar, made("span", words));
    document.documentElement.append(box);
    const done = () => { watcher.disconnect(); box.remove(); sessionStorage.removeItem("ftl-again"); };
    const watcher = new MutationObserver(() => { if (document.querySelector("#nav [role=tab]")) done(); });
    watcher.observe(document.documentElement, { childList: true, subtree: true });
    // A page that does not come (a script of it was lost on the way) is loaded once more; after that, whatever keeps it is seen.
    setTimeout(() => {
      if (!box.isConnected) return;
      if (sessionStorage.getItem("ftl-again")) setTimeout(done, 30000);
      else { sessionStorage.setItem("ftl-again", "1"); location.reload(); }
    }, 30000);
  }
  cover();

  // ── which window ────────────────────────────────────────────────────────────────────────────────────────
  function windowName() {
    let name = sessionStorage.getItem("ftl-window");
    if (!name) {
      name = [...crypto.getRandomValues(new Uint8Array(12))].map((n) => (n % 36).toString(36)).join("");
      sessionStorage.setItem("ftl-window", name);
    }
    return name + " " + navigator.language;
  }

  // ── which page is in view, and since when: told when it comes, and with every tick, in case its coming was not heard ────────
  // Since 0: the page that every load begins with, and nobody's choice.
  let inView = { page: config.first, since: 0 };
  function shows(page) {
    if (page !== inView.page) inView = { page, since: performance.timeOrigin + performance.now() };
    return String(inView.since);
  }
  function pageInView() {
    const tab = document.querySelector("#nav > .tab-wrapper [role=tablist]:not(.visually-hidden) [aria-selected=true]");
    if (tab && tab.dataset.tabId && tab.dataset.tabId !== inView.page) shows(tab.dataset.tabId);
    return `${inView.page} ${inView.since}`;
  }

  // ── views: a press on anything with data-do is told to the server with its data-* ─────────────────────────
  function attach(element, trigger, watch) {
    element.addEventListener("click", (event) => {
      const found = event.target.closest("[data-do]");
      if (!found || !element.contains(found) || found.disabled || found.matches("select,input,textarea,form")) return;
      if (found.dataset.confirm && !window.confirm(found.dataset.confirm)) return;
      event.preventDefault();
      trigger("click", { ...found.dataset });
    });
    element.addEventListener("change", (event) => {
      const found = event.target.closest("select[data-do],input[data-do],textarea[data-do]");
      if (!found) return;
      const value = found.type === "checkbox" ? String(found.checked) : found.value;
      trigger("click", { ...found.dataset, key: found.dataset.value || "", value });
    });
    // A form with data-do is told as a whole: its data-*, and its fields by their names.
    element.addEventListener("submit", (event) => {
      const form = event.target.closest("form[data-do]");
      if (!form) return;
      event.preventDefault();
      trigger("click", { ...form.dataset, ...Object.fromEntries([...new FormData(form)].filter(([, value]) => typeof value === "string")) });
    });
    // Where a view shows another thing (data-top is another), it is seen from its top, and the keyboard is there.
    let topmost = null;
    function show() {
      const found = element.querySelector("[data-top]"), name = found ? found.dataset.top : null;
      if (name === topmost) return;
      const first = topmost === null;
      topmost = name;
      if (first || !found || !element.offsetParent) return;
      document.querySelector("gradio-app").scrollTop = 0;
      found.focus({ preventScroll: true });
    }
    // A view is made anew when it changes: what had the focus, was open or was scrolled stays so.
    let focused = "", open = new Set(), scrolled = new Map();
    element.addEventListener("focusin", (event) => (focused = event.target.id || handle(event.target)));
    element.addEventListener("focusout", () => setTimeout(() => { if (!element.contains(document.activeElement) && document.activeElement !== document.body) focused = ""; }));
    element.addEventListener("toggle", (event) => { if (event.target.dataset && event.target.dataset.keep) open[event.target.open ? "add" : "delete"](event.target.dataset.keep); }, true);
    element.addEventListener("scroll", (event) => { if (event.target.dataset && event.target.dataset.scroll) scrolled.set(event.target.dataset.scroll, [event.target.scrollTop, event.target.scrollHeight - event.target.clientHeight - event.target.scrollTop < 40]); }, true);
    const growing = element.closest(".follow-end");
    if (growing) [element, growing].forEach((one) => new ResizeObserver(() => stayAtEnd(growing)).observe(one));
    // Gradio changes a view's elements in place, and a field that was typed in or picked from then keeps that. One with data-fresh
    // shows what the server has whenever that text changes.
    function refresh(field) {
      const before = field.ftlFresh;
      field.ftlFresh = field.dataset.fresh;
      if (before === undefined || before === field.ftlFresh) return;
      if (field.matches("select")) field.value = (field.querySelector("option[selected]") || { value: "" }).value;
      else if (field.type === "checkbox") field.checked = field.hasAttribute("checked");
      else field.value = field.getAttribute("value") || "";
    }
    function after() {
      element.querySelectorAll("[data-fresh]").forEach(refresh);
      // A class and not :has(:empty): WebKit does not notice when that ceases to be so.
      const block = element.closest(".block.view");
      if (block) block.classList.toggle("vacant", !element.hasChildNodes());
      const wanted = element.querySelector("[autofocus]");
      if (wanted && document.activeElement !== wanted) wanted.focus();
      element.querySelectorAll("details[data-keep]").forEach((d) => (d.open = d.open || open.has(d.dataset.keep)));
      element.querySelectorAll("[data-scroll]").forEach((d) => {
        const [top, end] = scrolled.get(d.dataset.scroll) || [0, d.dataset.end !== undefined];
        d.scrollTop = end && d.dataset.end !== undefined ? d.scrollHeight : top;
      });
      if (focused && (document.activeElement === document.body || !document.activeElement)) {
        const again = [...element.querySelectorAll("button,a,select,input,summary,[tabindex]")].find((e) => (e.id || handle(e)) === focused);
        if (again) again.focus({ preventScroll: true });
      }
      show();
    }
    watch("value", after);
    after();
  }
  const handle = (e) => (e.dataset && e.dataset.do ? e.dataset.do + " " + (e.dataset.value || "") : "");

  // A place that grows at its end shows its end, until the user scrolls away from it.
  const left = new WeakSet(), reached = new WeakMap();
  function stayAtEnd(place) {
    if (place && !left.has(place)) place.scrollTop = place.scrollHeight;
  }
  document.addEventListener("scroll", ({ target }) => {
    if (!target.classList || !target.classList.contains("follow-end")) return;
    const back = target.scrollTop < (reached.get(target) || 0); // what grows only goes on
    reached.set(target, target.scrollTop);
    if (target.scrollHeight - target.clientHeight - target.scrollTop <= 60) left.delete(target);
    else if (back) left.add(target);
  }, true);

  // Gradio's text fields tell of typing by "keypress", which deleting, pasting and composing (Chinese, Japanese) never make. Here they
  // tell by "input"; while a word is being composed only at its end.
  const fields = "textarea[data-testid], input[data-testid]";
  document.addEventListener("keypress", (event) => {
    if (event.isTrusted && event.key !== "Enter" && event.target.matches(fields)) event.stopPropagation();
  }, true);
  for (const kind of ["input", "compositionend"]) {
    document.addEventListener(kind, (event) => {
      if (event.isComposing || !event.target.matches(fields)) return;
      event.target.dispatchEvent(new KeyboardEvent("keypress", { key: "Unidentified", bubbles: true }));
    });
  }

  // A message box: Enter sends (presses the primary button beside it), Shift+Enter begins a new line, and the Enter that ends the
  // composing of a word does neither. Safari says so by the key's code alone.
  for (const kind of ["keydown", "keypress"]) {
    document.addEventListener(kind, (event) => {
      const box = event.key === "Enter" && event.target.closest && event.target.closest(".enter-sends");
      if (!box) return;
      event.stopPropagation();
      if (event.shiftKey || event.isComposing || event.keyCode === 229) return;
      event.preventDefault();
      const button = kind === "keydown" && box.parentElement.querySelector(".button.primary:not(:disabled)");
      if (!button || !event.target.value.trim()) return;
      document.querySelectorAll(".follow-end").forEach((place) => left.delete(place));
      button.click();
    }, true);
  }

  // A panel that a word opens closes with a press beside it, or Escape.
  const popups = () => document.querySelectorAll("details.popup[open]");
  document.addEventListener("click", ({ target }) => popups().forEach((d) => { if (!d.contains(target)) d.open = false; }));
  document.addEventListener("keydown", (event) => {
    if (event.key !== "Escape") return;
    popups().forEach((d) => { if (d.contains(document.activeElement)) d.querySelector("summary").focus(); d.open = false; });
  });

  document.addEventListener("click", (event) => {
    const copy = event.target.closest("[data-copy]");
    if (copy) {
      navigator.clipboard.writeText(copy.dataset.copy).then(() => {
        copy.classList.add("done");
        setTimeout(() => copy.classList.remove("done"), 1500);
      });
    }
    const pick = event.target.closest("[data-pick]");
    if (pick && window.pywebview) {
      window.pywebview.api.pick(pick.dataset.pick).then((path) => path && fill(pick.dataset.into, path));
    }
  });

  // Put a text into one of Gradio's fields as if it had been typed.
  function fill(id, text) {
    const field = document.querySelector(`#${CSS.escape(id)} textarea, #${CSS.escape(id)} input`);
    if (!field) return;
    const kind = field.tagName === "TEXTAREA" ? HTMLTextAreaElement : HTMLInputElement;
    Object.getOwnPropertyDescriptor(kind.prototype, "value").set.call(field, text);
    field.dispatchEvent(new Event("input", { bubbles: true }));
    field.dispatchEvent(new Event("change", { bubbles: true }));
    field.dispatchEvent(new KeyboardEvent("keydown", { key: "Enter", bubbles: true }));
    field.blur();
  }
  const inWindow = () => { if (window.pywebview) document.documentElement.classList.add("in-window"); };
  window.addEventListener("pywebviewready", inWindow);
  inWindow();

  // ── files dropped anywhere on a page with a place for them go there ─────────────────────────────────────────
  const dropTarget = () => [...document.querySelectorAll(".drop-here input[type=file]")].find((e) => e.closest(".drop-here").offsetParent);
  let depth = 0;
  const files = (event) => event.dataTransfer && [...event.dataTransfer.types].includes("Files");
  document.addEventListener("dragenter", (event) => { if (files(event)) { depth++; document.body.classList.toggle("dragging", Boolean(dropTarget())); } });
  document.addEventListener("dragleave", (event) => { if (files(event) && --depth <= 0) { depth = 0; document.body.classList.remove("dragging"); } });
  document.addEventListener("dragover", (event) => { if (files(event)) event.preventDefault(); });
  document.addEventListener("drop", (event) => {
    if (!files(event)) return;
    depth = 0;
    document.body.classList.remove("dragging");
    event.preventDefault(); // a file must never replace the page
    const input = dropTarget(), button = event.target.closest("button");
    if (!input || (button && button.contains(input))) return; // Gradio's own place for files takes them itself
    input.files = event.dataTransfer.files;
    input.dispatchEvent(new Event("change", { bubbles: true }));
  });

  // ── charts: values under the mouse ──────────────────────────────────────────────────────────────────────────
  document.addEventListener("pointermove", (event) => {
    const plot = event.target.closest && event.target.closest(".chart .plot");
    document.querySelectorAll(".chart .plot.over").forEach((other) => { if (other !== plot) leave(other); });
    if (!plot) return;
    const data = plot.ftlData || (plot.ftlData = JSON.parse(plot.dataset.points));
    const box = plot.getBoundingClientRect();
    const at = Math.min(1, Math.max(0, (event.clientX - box.left) / box.width));
    let best = 0;
    data.x.forEach((x, i) => { if (Math.abs(x - at) < Math.abs(data.x[best] - at)) best = i; });
    if (!data.x.length) return;
    plot.classList.add("over");
    const line = plot.querySelector(".cross"), tip = plot.querySelector(".tip");
    line.style.left = 100 * data.x[best] + "%";
    tip.textContent = data.tips[best];
    tip.style.left = 100 * data.x[best] + "%";
    tip.classList.toggle("flip", data.x[best] > 0.6);
  });
  document.addEventListener("pointerout", (event) => { if (!event.relatedTarget) document.querySelectorAll(".chart .plot.over").forEach(leave); });
  const leave = (plot) => plot.classList.remove("over");

  // ── does the server live? ───────────────────────────────────────────────────────────────────────────────────
  let built = null, missed = 0;
  async function look() {
    try {
      const answer = await fetch("ftl/alive", { cache: "no-store" });
      if (answer.status === 401) throw new Error("another launch");
      const state = await answer.json();
      missed = 0;
      const gone = document.getElementById("gone");
      if (gone) gone.remove();
      if (built !== null && state.built !== built) { location.reload(); return; }
      built = state.built;
    } catch (error) {
      if (++missed >= 2 && !document.getElementById("gone")) tellGone();
    }
    setTimeout(look, 2000);
  }
  function tellGone() {
    const text = config.gone || ["", "", ""];
    const box = document.createElement("div");
    box.id = "gone";
    box.setAttribute("role", "alertdialog");
    box.setAttribute("aria-label", text[0]);
    const inner = document.createElement("div");
    for (const [tag, words] of [["h1", text[0]], ["p", text[1]], ["p", text[2]]]) {
      const part = document.createElement(tag);
      part.textContent = words;
      inner.append(part);
    }
    box.append(inner);
    document.body.append(box);
  }
  setTimeout(look, 2000);

  // ── a view that is drawn anew between press and release swallows the click: what stands there now and does the same gets it ──
  let held = null;
  const button = (event) => (event.target.closest && event.target.closest("[data-do]")) || null;
  const does = (found) => JSON.stringify({ ...found.dataset });
  document.addEventListener("pointerdown", (event) => {
    const found = event.button === 0 ? button(event) : null;
    held = found && { found, does: does(found) };
  }, true);
  document.addEventListener("click", () => { held = null; }, true);
  document.addEventListener("pointerup", (event) => {
    const was = held, now = button(event);
    if (!was || was.found.isConnected || !now || does(now) !== was.does) return;
    setTimeout(() => { if (held === was && now.isConnected) now.click(); }); // no click came by itself
  }, true);

  // ── buttons that a key presses (data-press), while nothing is being typed ───────────────────────────────────────────
  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || event.repeat || event.key.length !== 1) return;
    if (event.target.closest && event.target.closest("input,textarea,select,[contenteditable]")) return;
    const key = event.key.toLowerCase();
    const found = [...document.querySelectorAll("button[data-press]")].find((b) => b.dataset.press === key && b.offsetParent && !b.disabled);
    if (!found) return;
    event.preventDefault();
    found.click();
  });

  // ── the rail by keyboard: arrows move along it, as in any list of tabs ──────────────────────────────────────────
  document.addEventListener("keydown", (event) => {
    const tab = event.target.closest && event.target.closest('#nav [role="tab"]');
    const step = { ArrowDown: 1, ArrowRight: 1, ArrowUp: -1, ArrowLeft: -1 }[event.key];
    if (tab && step && tab.closest("#nav > .tab-wrapper")) {
      const all = [...tab.parentElement.querySelectorAll('[role="tab"]')];
      const next = all[(all.indexOf(tab) + step + all.length) % all.length];
      event.preventDefault();
      next.focus();
      next.click();
    }
  });

  const theme = (wanted) => { config.theme = wanted; applyTheme(); };

  return { attach, window: windowName, page: pageInView, shows, fill, theme, config };
})();
