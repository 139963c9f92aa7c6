
"use strict";
(() => {
  const tip = document.getElementById("tip");
  const said = document.getElementById("said");
  const texts = new Map();
  let now = null;
  for (const figure of document.querySelectorAll("figure")) {
    const wide = figure.querySelectorAll(".wide .mark");
    const narrow = figure.querySelectorAll(".narrow .mark");  // the same marks, in the same order
    wide.forEach((mark, index) => {
      const title = mark.querySelector("title");
      texts.set(mark, title.textContent);
      texts.set(narrow[index], title.textContent);
      title.remove();  // or the browser would show it, too, a second later
    });
  }
  const middle = (mark) => {
    const box = mark.getBoundingClientRect();
    return [box.x + box.width / 2, box.y + box.height / 2, box];
  };
  const hide = () => {
    if (now) now.classList.remove("now");
    now = null;
    tip.hidden = true;
  };
  const place = () => {
    if (!now) return;
    const [x, , box] = middle(now);
    const room = document.documentElement.clientWidth - tip.offsetWidth - 8;
    const above = box.y - tip.offsetHeight - 8;
    tip.style.left = `${Math.min(Math.max(8, x - tip.offsetWidth / 2), room)}px`;
    tip.style.top = `${above > 8 ? above : box.y + box.height + 8}px`;
  };
  const show = (mark) => {
    hide();
    now = mark;
    mark.classList.add("now");
    tip.textContent = texts.get(mark);
    tip.hidden = false;
    place();
  };
  const towards = { ArrowRight: [1, 0], ArrowLeft: [-1, 0], ArrowDown: [0, 1], ArrowUp: [0, -1] };
  const next = (chart, [right, down]) => {
    const marks = [...chart.querySelectorAll(".mark")];
    if (!now || !chart.contains(now)) return marks[0];
    const [x, y] = middle(now);
    let best = now, least = Infinity;
    for (const mark of marks) {
      const [a, b] = middle(mark);
      const along = (a - x) * right + (b - y) * down;
      const aside = Math.abs((a - x) * down) + Math.abs((b - y) * right);
      if (along > 0.5 && along + 3 * aside < least) [best, least] = [mark, along + 3 * aside];
    }
    return best;
  };
  document.addEventListener("pointerover", (event) => {
    const mark = event.target.closest(".mark");
    if (mark) show(mark);
    else hide();
  });
  document.addEventListener("scroll", place, { passive: true });
  document.addEventListener("focusout", hide);
  document.addEventListener("keydown", (event) => {
    const chart = event.target.closest(".chart");
    if (event.key === "Escape") hide();
    if (!chart || !towards[event.key]) return;
    event.preventDefault();
    const mark = next(chart, towards[event.key]);
    if (!mark) return;
    show(mark);
    said.textContent = texts.get(mark);
  });
})();
