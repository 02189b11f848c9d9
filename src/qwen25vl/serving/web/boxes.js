// A picture with the boxes and points of an answer drawn over it, and a table of them. Pointing at
// one shows the other.
//
// The canvas covers the picture, has the screen's own pixels, and is drawn anew whenever the
// picture is shown in another size. Coordinates are pixels of the original picture.

import { copyText, download, element, iconButton } from "./dom.js";

// told apart on light and dark pictures, and by people who see few colours (after Okabe and Ito)
const COLOURS = ["#d9480f", "#1971c2", "#2b8a3e", "#c2255c", "#7048e8", "#0b7285", "#8a5a00"];
const POINT_RADIUS = 7;
const WIDE = 1.6; // wider pictures have the table below them, not beside

export const colourOf = (index) => COLOURS[index % COLOURS.length];

// picture: {url, name, width, height}; marks: [{label, box} or {label, point}];
// onCrop(box), onOpen(): what the buttons of a row and of the picture do
export class MarkedPicture {
  constructor(picture, marks, { onCrop, onOpen }) {
    Object.assign(this, { picture, marks, active: null, hasLabels: true });
    this.labels = [...new Set(marks.map((mark) => mark.label))];
    this.image = element("img", { src: picture.url, alt: this.description(), draggable: "false" });
    this.canvas = element("canvas", { "aria-hidden": "true" });
    this.frame = element("div", { class: "frame" }, this.image, this.canvas);
    this.frame.style.setProperty("--ratio", picture.width / picture.height);
    this.rows = marks.map((mark, index) => this.row(mark, index, onCrop));
    const isWide = picture.width > WIDE * picture.height;
    const layout = isWide ? "marked wide-picture" : "marked";
    const stage = element("div", { class: "stage-of-picture" }, this.frame);
    this.element = element("figure", { class: layout }, stage, this.caption(onOpen));
    this.frame.addEventListener("pointermove", (event) => this.setActive(this.markAt(event)));
    this.frame.addEventListener("pointerleave", () => this.setActive(null));
    this.frame.addEventListener("click", onOpen);
    this.image.addEventListener("load", () => this.draw());
    new ResizeObserver(() => this.draw()).observe(this.frame);
  }

  description() {
    const things = this.marks.map((mark) => `${mark.label} at ${placeOf(mark)}`);
    return `${this.picture.name} with marks: ${things.join("; ")}`;
  }

  colour(mark) {
    return colourOf(this.labels.indexOf(mark.label));
  }

  caption(onOpen) {
    const head = element("tr", {}, ["", "Label", "Place in pixels", ""].map((text) =>
      element("th", { scope: "col" }, text || element("span", { class: "hidden" }, "Mark"))));
    const table = element("table", {}, element("thead", {}, head), element("tbody", {}, this.rows));
    const json = () => JSON.stringify(this.marks, null, 2);
    const copy = iconButton("copy", "Copy the marks as JSON", () => copyText(json(), copy));
    const labels = iconButton("tag", "Hide or show the labels", () => {
      this.hasLabels = !this.hasLabels;
      labels.setAttribute("aria-pressed", String(this.hasLabels));
      this.draw();
    }, { "aria-pressed": "true" });
    const buttons = [
      iconButton("expand", "Open the picture", onOpen),
      labels,
      copy,
      iconButton("download", "Save the picture with its marks", () => this.save()),
    ];
    const bar = element("div", { class: "bar" }, element("span", {}, this.picture.name), buttons);
    return element("figcaption", {}, bar, element("div", { class: "rows" }, table));
  }

  row(mark, index, onCrop) {
    const swatch = element("span", { class: "swatch" });
    swatch.style.background = this.colour(mark);
    const area = mark.box ? roundBox(mark.box, this.picture) : null;
    const cut = () => onCrop(area);
    const button = area && iconButton("crop", `Ask about this ${mark.label}`, cut);
    const cells = [swatch, mark.label, element("code", {}, placeOf(mark)), button ?? ""];
    const row = element("tr", { tabindex: "0" }, cells.map((cell) => element("td", {}, cell)));
    for (const [name, value] of [["enter", index], ["leave", null]]) {
      row.addEventListener(`pointer${name}`, () => this.setActive(value));
    }
    row.addEventListener("focusin", () => this.setActive(index));
    row.addEventListener("focusout", () => this.setActive(null));
    return row;
  }

  setActive(index) {
    if (index === this.active) return;
    this.active = index;
    this.rows.forEach((row, i) => row.classList.toggle("active", i === index));
    this.draw();
  }

  // the smallest box or nearest point under the pointer
  markAt(event) {
    const area = this.frame.getBoundingClientRect();
    const scale = this.picture.width / area.width;
    const [x, y] = [(event.clientX - area.left) * scale, (event.clientY - area.top) * scale];
    const sizes = this.marks.map((mark) => {
      if (mark.point) {
        const distance = Math.hypot(mark.point[0] - x, mark.point[1] - y);
        return distance <= 2 * POINT_RADIUS * scale ? distance : Infinity;
      }
      const [x0, y0, x1, y1] = mark.box;
      return x >= x0 && x <= x1 && y >= y0 && y <= y1 ? (x1 - x0) * (y1 - y0) : Infinity;
    });
    const least = Math.min(...sizes);
    return least === Infinity ? null : sizes.indexOf(least);
  }

  draw() {
    const { clientWidth: width, clientHeight: height } = this.frame;
    if (!width || !height) return;
    const density = window.devicePixelRatio || 1;
    this.canvas.width = Math.round(width * density);
    this.canvas.height = Math.round(height * density);
    this.drawMarks(this.canvas.getContext("2d"), this.canvas.width, density);
  }

  drawMarks(context, width, density) {
    const scale = width / this.picture.width;
    const order = [...this.marks.keys()].filter((index) => index !== this.active);
    if (this.active !== null) order.push(this.active); // above the others
    context.font = `600 ${12 * density}px system-ui, sans-serif`;
    context.textBaseline = "middle";
    for (const index of order) {
      const mark = this.marks[index];
      context.globalAlpha = this.active === null || this.active === index ? 1 : 0.35;
      const pen = { colour: this.colour(mark), scale, density, isActive: index === this.active };
      if (mark.box) drawBox(context, mark, pen);
      else drawPoint(context, mark, pen);
      if (this.hasLabels) drawLabel(context, mark, pen);
    }
    context.globalAlpha = 1;
  }

  save() {
    const canvas = element("canvas");
    const factor = Math.max(1, Math.ceil(800 / this.picture.width));
    canvas.width = this.picture.width * factor;
    canvas.height = this.picture.height * factor;
    const context = canvas.getContext("2d");
    context.drawImage(this.image, 0, 0, canvas.width, canvas.height);
    this.drawMarks(context, canvas.width, Math.max(1, canvas.width / 900));
    const name = `${this.picture.name.replace(/\.\w+$/, "")}-marked.png`;
    canvas.toBlob((blob) => download(name, blob), "image/png");
  }
}

function drawBox(context, { box }, { colour, scale, density, isActive }) {
  const [x0, y0, x1, y1] = box.map((value) => value * scale);
  if (isActive) {
    context.fillStyle = `${colour}26`;
    context.fillRect(x0, y0, x1 - x0, y1 - y0);
  }
  context.lineJoin = "round";
  for (const [style, width] of [["#ffffffb0", 4], [colour, 2]]) {
    context.strokeStyle = style;
    context.lineWidth = width * density;
    context.strokeRect(x0, y0, x1 - x0, y1 - y0);
  }
}

function drawPoint(context, { point }, { colour, scale, density, isActive }) {
  const radius = (isActive ? 1.3 : 1) * POINT_RADIUS * density;
  context.beginPath();
  context.arc(point[0] * scale, point[1] * scale, radius, 0, 2 * Math.PI);
  context.fillStyle = colour;
  context.fill();
  context.strokeStyle = "#fff";
  context.lineWidth = 2 * density;
  context.stroke();
}

// above the mark, or inside it where there is no room
function drawLabel(context, mark, { colour, scale, density }) {
  if (!mark.label) return;
  const height = 18 * density;
  const width = context.measureText(mark.label).width + 10 * density;
  const [x0, y0] = (mark.box ?? mark.point).map((value) => value * scale);
  const side = mark.box ? -density : (POINT_RADIUS + 3) * density;
  const x = Math.max(0, Math.min(x0 + side, context.canvas.width - width));
  const above = mark.box ? y0 - height : y0 - height / 2;
  const y = Math.max(0, above);
  context.fillStyle = colour;
  context.fillRect(x, y, width, height);
  context.fillStyle = "#fff";
  context.fillText(mark.label, x + 5 * density, y + height / 2 + density / 2);
}

export function placeOf({ box, point }) {
  return (box ?? point).map((value) => Math.round(value)).join(", ");
}

// whole pixels inside the picture, at least one
export function roundBox([x0, y0, x1, y1], { width, height }) {
  const left = Math.max(0, Math.min(Math.floor(Math.min(x0, x1)), width - 1));
  const top = Math.max(0, Math.min(Math.floor(Math.min(y0, y1)), height - 1));
  const right = Math.max(left + 1, Math.min(Math.ceil(Math.max(x0, x1)), width));
  const bottom = Math.max(top + 1, Math.min(Math.ceil(Math.max(y0, y1)), height));
  return [left, top, right, bottom];
}
