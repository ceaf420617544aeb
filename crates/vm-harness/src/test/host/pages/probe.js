// SPDX-License-Identifier: Apache-2.0 OR MIT
//
// Looks at the page that it was added to, as somebody would who reads it, and leaves what it found
// in an element of its own.
(() => {
  // Pixels by which boxes may touch: letters do not fill theirs.
  const SLACK = 2;
  // Smallest letters, and the weakest contrast of text (WCAG 2, AA), that can be read.
  const LEAST_HEIGHT = 9;
  const LEAST_CONTRAST = 4.5;

  const problems = [];
  const root = document.scrollingElement;
  const short = (text) => text.trim().slice(0, 50);

  const scrolls = (element) => {
    for (let one = element; one; one = one.parentElement)
      if (one !== root && /auto|scroll/.test(getComputedStyle(one).overflowX)) return true;
    return false;
  };
  const channels = (colour) => (colour.match(/[\d.]+/g) || []).map(Number);
  const luminance = (colour) => {
    const [r, g, b] = channels(colour).map((value) => {
      const part = value / 255;
      return part <= 0.03928 ? part / 12.92 : ((part + 0.055) / 1.055) ** 2.4;
    });
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const groundOf = (element) => {
    for (let one = element; one; one = one.parentElement) {
      const colour = getComputedStyle(one).backgroundColor;
      const alpha = channels(colour)[3];
      if (alpha === undefined || alpha > 0) return colour;
    }
    return "rgb(255, 255, 255)";
  };
  const contrast = (a, b) => {
    const [less, more] = [luminance(a), luminance(b)].sort((x, y) => x - y);
    return (more + 0.05) / (less + 0.05);
  };
  const inside = (box, around) =>
    box.left >= around.left - SLACK && box.right <= around.right + SLACK &&
    box.top >= around.top - SLACK && box.bottom <= around.bottom + SLACK;

  if (root.scrollWidth > root.clientWidth)
    problems.push(`it is ${root.scrollWidth} pixels wide, and the window ${root.clientWidth}`);

  const boxes = [];
  const texts = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (texts.nextNode()) {
    const node = texts.currentNode;
    const parent = node.parentElement;
    const text = node.textContent;
    if (!text.trim() || parent.closest("script, style")) continue;
    const range = document.createRange();
    range.selectNodeContents(node);
    const svg = parent.closest("svg");
    const own = [...range.getClientRects()].filter((box) => box.width > 0);
    if (!own.length) problems.push(`'${short(text)}' is not shown`);
    for (const box of own) {
      boxes.push({ box, node, text });
      if (svg && !inside(box, svg.getBoundingClientRect()))
        problems.push(`'${short(text)}' is cut off by its drawing`);
      if ((box.left < -SLACK || box.right > root.clientWidth + SLACK) && !scrolls(parent))
        problems.push(`'${short(text)}' is cut off by the window`);
      if (Math.min(box.height, box.width) > 0 && Math.max(box.height, box.width) < LEAST_HEIGHT)
        problems.push(`'${short(text)}' is too small to be read`);
      if (svg && box.height < LEAST_HEIGHT) problems.push(`'${short(text)}' is ${box.height} pixels high`);
    }
    const style = getComputedStyle(parent);
    const found = contrast(svg ? style.fill : style.color, groundOf(parent));
    if (!(found >= LEAST_CONTRAST))
      problems.push(`'${short(text)}' has a contrast of ${found.toFixed(1)} to its ground`);
  }
  boxes.sort((a, b) => a.box.top - b.box.top);
  boxes.forEach((one, number) => {
    for (const other of boxes.slice(number + 1)) {
      if (other.box.top > one.box.bottom - SLACK) break;
      const wide = Math.min(one.box.right, other.box.right) - Math.max(one.box.left, other.box.left);
      const high = Math.min(one.box.bottom, other.box.bottom) - other.box.top;
      if (one.node !== other.node && wide > SLACK && high > SLACK)
        problems.push(`'${short(one.text)}' and '${short(other.text)}' lie on each other`);
    }
  });

  const bars = [...document.querySelectorAll(".track i")];
  for (const bar of bars)
    if (!inside(bar.getBoundingClientRect(), bar.parentElement.getBoundingClientRect()) &&
        !bar.classList.contains("mark"))
      problems.push("a bar is longer than there is room");
  const lines = [...document.querySelectorAll("svg polyline")];
  for (const line of lines)
    if (!inside(line.getBoundingClientRect(), line.closest("svg").getBoundingClientRect()))
      problems.push("a line leaves its drawing");

  const seen = {
    problems,
    width: innerWidth,
    dark: matchMedia("(prefers-color-scheme: dark)").matches,
    bars: bars.filter((bar) => bar.getBoundingClientRect().width > 0).length,
    lines: lines.length,
    text: boxes.map(({ text }) => text).join("\n"),
  };
  const result = document.createElement("script");
  result.id = "seen";
  result.type = "application/json";
  // Nothing in it may end the element.
  result.textContent = JSON.stringify(seen).replaceAll("<", "\\u003c");
  document.body.append(result);
})();
