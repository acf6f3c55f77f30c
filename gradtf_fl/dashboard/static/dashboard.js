// Keeps an open page as its files are: parts that changed arrive as HTML that the server has escaped.
"use strict";

(() => {
  const page = document.body.dataset.page;
  if (!page || !window.EventSource) return;

  const byId = (id) => document.getElementById(id);
  const waiting = new Map(); // parts that arrived while somebody was marking text in them

  const connection = (text, live) => {
    const line = byId("connection");
    if (line.textContent !== text) line.textContent = text;
    line.classList.toggle("live", live);
  };

  const marked = (part) => {
    const selection = document.getSelection();
    return selection && !selection.isCollapsed && selection.rangeCount > 0
      && selection.getRangeAt(0).intersectsNode(part);
  };

  // What takes the focus inside the nearest element with an id
  const focusable = (id) => {
    const box = byId(id);
    return box ? [box, ...box.querySelectorAll("a, summary, [tabindex]")] : [];
  };

  // What a person has done to a part: boxes opened, tables scrolled, a link in focus
  const remember = (part) => {
    const active = part.contains(document.activeElement) ? document.activeElement : null;
    const near = active?.closest("[id]").id;
    return {
      open: [...part.querySelectorAll("details[open][id]")].map((box) => box.id),
      scrolled: [...part.querySelectorAll(".scroll")].map((box) => box.scrollLeft),
      focus: active ? { near, place: focusable(near).indexOf(active) } : null,
    };
  };

  const restore = (part, before) => {
    for (const id of before.open) byId(id)?.setAttribute("open", "");
    [...part.querySelectorAll(".scroll")].forEach((box, n) => { box.scrollLeft = before.scrolled[n] ?? 0; });
    if (before.focus) focusable(before.focus.near)[before.focus.place]?.focus({ preventScroll: true });
  };

  const replace = ({ id, digest, html }) => {
    const part = byId(id);
    if (!part || part.dataset.digest === digest) return;
    if (marked(part)) {
      waiting.set(id, { id, digest, html });
      return;
    }
    waiting.delete(id);
    const before = remember(part);
    part.innerHTML = html;
    part.dataset.digest = digest;
    restore(part, before);
  };

  const problem = (text) => {
    const line = byId("problem");
    line.textContent = text;
    line.hidden = !text;
  };

  document.addEventListener("selectionchange", () => {
    for (const change of [...waiting.values()]) replace(change);
  });

  const events = new EventSource(`/events/${page}`);
  events.addEventListener("open", () => connection("live", true));
  events.addEventListener("part", (event) => replace(JSON.parse(event.data)));
  events.addEventListener("problem", (event) => problem(JSON.parse(event.data).text));
  events.addEventListener("beat", (event) => {
    problem("");
    const { spoken } = JSON.parse(event.data);
    if (byId("spoken").textContent !== spoken) byId("spoken").textContent = spoken;
  });
  events.addEventListener("error", () => connection("not live: the dashboard was ended, or can't be reached", false));
})();
