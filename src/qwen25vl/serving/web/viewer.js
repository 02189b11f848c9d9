// A picture in full size, and a part of it as a new picture: drag a rectangle, or type its corners.

import { roundBox } from "./boxes.js";
import { byId, openDialog } from "./dom.js";

const FIELDS = ["left", "top", "right", "bottom"];

// the chosen part [x0, y0, x1, y1] in pixels of the picture, or null
export async function viewPicture({ url, name, width, height }) {
  const image = byId("viewer-image");
  const fields = FIELDS.map((side) => byId(`viewer-${side}`));
  const area = new Area(byId("viewer-canvas"), { width, height }, fields);
  byId("viewer-title").textContent = `${name}, ${width}×${height}`;
  image.alt = name;
  const frame = image.parentElement.style;
  frame.setProperty("--ratio", width / height);
  frame.setProperty("--width", `${width}px`);
  image.src = url;
  const drawing = new ResizeObserver(() => area.draw());
  drawing.observe(image);
  area.listen();
  const answer = await openDialog("viewer-dialog");
  drawing.disconnect();
  area.stop();
  image.removeAttribute("src");
  return answer === "yes" ? area.box : null;
}

class Area {
  constructor(canvas, size, fields) {
    Object.assign(this, { canvas, size, fields, box: null, start: null });
    this.stopping = new AbortController();
    fields.forEach((field, index) => {
      field.value = "";
      field.max = index % 2 ? size.height : size.width;
    });
    this.show();
  }

  listen() {
    const { signal } = this.stopping;
    const on = (target, name, action) => target.addEventListener(name, action, { signal });
    on(this.canvas, "pointerdown", (event) => {
      event.preventDefault();
      this.canvas.setPointerCapture(event.pointerId);
      this.start = this.place(event);
    });
    on(this.canvas, "pointermove", (event) => {
      if (!this.start) return;
      const [x, y] = this.place(event);
      this.set(roundBox([...this.start, x, y], this.size));
    });
    for (const name of ["pointerup", "pointercancel"]) {
      on(this.canvas, name, () => {
        this.start = null;
      });
    }
    for (const field of this.fields) on(field, "input", () => this.type());
  }

  stop() {
    this.stopping.abort();
  }

  // where the pointer is, in pixels of the picture
  place(event) {
    const area = this.canvas.getBoundingClientRect();
    const x = ((event.clientX - area.left) / area.width) * this.size.width;
    const y = ((event.clientY - area.top) / area.height) * this.size.height;
    return [x, y];
  }

  set(box) {
    this.box = box;
    this.fields.forEach((field, index) => {
      field.value = box[index];
    });
    this.show();
  }

  type() {
    const typed = this.fields.map((field) => (field.value === "" ? NaN : Number(field.value)));
    const [x0, y0, x1, y1] = typed;
    this.box = x1 > x0 && y1 > y0 ? roundBox(typed, this.size) : null;
    this.show();
  }

  show() {
    byId("viewer-ask").disabled = this.box === null;
    this.draw();
  }

  draw() {
    const { clientWidth: width, clientHeight: height } = this.canvas;
    if (!width || !height) return;
    const density = window.devicePixelRatio || 1;
    Object.assign(this.canvas, { width: width * density, height: height * density });
    if (!this.box) return;
    const context = this.canvas.getContext("2d");
    const scale = this.canvas.width / this.size.width;
    const [x0, y0, x1, y1] = this.box.map((value) => value * scale);
    context.fillStyle = "#0008";
    context.fillRect(0, 0, this.canvas.width, this.canvas.height);
    context.clearRect(x0, y0, x1 - x0, y1 - y0);
    context.strokeStyle = "#fff";
    context.lineWidth = 2 * density;
    context.strokeRect(x0, y0, x1 - x0, y1 - y0);
  }
}
