// The native window's own: what its menu does in the page, the keys that a browser has and a bare view lacks, links that lead
// outside. gui/window/window.py puts it into every page that loads. ASCII only: GTK counts a script's length in characters.
"use strict";
(() => {
  if (window.ftlWindow) return;
  const { words, zoom: before } = window.ftlWindowOptions;
  const api = () => window.pywebview.api;

  // ---- zoom ----
  const ZOOMS = [0.5, 0.67, 0.8, 0.9, 1, 1.1, 1.25, 1.5, 1.75, 2, 2.5, 3];
  let level = before;
  function zoomTo(value) {
    level = value;
    document.documentElement.style.zoom = String(level);
    if (api().zoomed) api().zoomed(level);
  }
  function zoom(step) {
    if (step === 0) return zoomTo(1);
    const wider = ZOOMS.filter((z) => (step > 0 ? z > level + 0.01 : z < level - 0.01));
    if (wider.length) zoomTo(step > 0 ? wider[0] : wider[wider.length - 1]);
  }
  if (level !== 1) document.documentElement.style.zoom = String(level);

  // ---- the page is loaded again only where there is one: else the view would show an error of its own ----
  function reload() {
    fetch("ftl/alive", { cache: "no-store" }).then((answer) => { if (answer.ok) location.reload(); }, () => {});
  }

  // ---- the data page, and what its own button opens ----
  function openData() {
    const tab = document.querySelector("#nav [role=tablist]:not(.visually-hidden) [data-tab-id=data]");
    if (!tab) return;
    tab.click();
    let tries = 0;
    (function press() {
      const button = [...document.querySelectorAll("#page-data [data-pick]")].find((e) => e.offsetParent);
      if (button) button.click();
      else if (++tries < 50) setTimeout(press, 100);
    })();
  }

  // ---- about, and the diagnostics to copy ----
  function about(version, diagnostics, copy) {
    const old = document.getElementById("about");
    if (old) old.remove();
    const box = document.createElement("dialog");
    box.id = "about";
    box.setAttribute("aria-label", words.about);
    const add = (tag, text, into) => {
      const made = document.createElement(tag);
      if (text) made.textContent = text;
      (into || box).append(made);
      return made;
    };
    const icon = add("img");
    icon.src = "ftl/icon.svg";
    icon.alt = "";
    add("h1", words.app);
    add("p", version);
    add("p", words.about_text);
    const pre = add("pre", diagnostics);
    pre.tabIndex = 0;
    pre.setAttribute("aria-label", words.diagnostics_here);
    const row = add("div");
    const copying = add("button", words.diagnostics, row);
    copying.type = "button";
    copying.dataset.copy = diagnostics;
    const close = add("button", words.close, row);
    close.type = "button";
    close.addEventListener("click", () => box.close());
    box.addEventListener("close", () => box.remove());
    document.body.append(box);
    box.showModal();
    (copy ? copying : close).focus();
    if (copy) copying.click();
  }

  // ---- links that lead outside open in the user's browser ----
  document.addEventListener("click", (event) => {
    const link = event.target.closest && event.target.closest("a[href]");
    if (!link || link.origin === location.origin || !/^https?:$/.test(link.protocol)) return;
    event.preventDefault();
    api().open_link(link.href);
  }, true);

  // ---- keys ----
  document.addEventListener("keydown", (event) => {
    const held = event.ctrlKey || event.metaKey;
    const key = event.key.toLowerCase();
    let known = true;
    if (event.key === "F11") api().full_screen();
    else if (event.key === "F5" || (held && key === "r")) reload();
    else if (held && (key === "+" || key === "=")) zoom(1);
    else if (held && key === "-") zoom(-1);
    else if (held && key === "0") zoom(0);
    else if (held && key === "o") openData();
    else if (held && (key === "q" || key === "w")) api().quit();
    else known = false;
    if (known) event.preventDefault();
  });

  window.ftlWindow = { zoom, reload, openData, about };
})();
