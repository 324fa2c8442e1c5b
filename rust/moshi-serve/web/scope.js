// The last seconds of a sound as peaks.

const COLUMNS = 150; // of one frame each: 12 seconds

export class Scope {
  constructor(canvas, color) {
    this.canvas = canvas;
    this.color = color;
    this.peaks = new Float32Array(COLUMNS);
    this.draw();
  }

  add(samples) {
    let peak = 0;
    for (const sample of samples) peak = Math.max(peak, Math.abs(sample));
    this.peaks.copyWithin(0, 1);
    this.peaks[COLUMNS - 1] = peak;
    if (!this.pending) {
      this.pending = true;
      requestAnimationFrame(() => this.draw());
    }
  }

  draw() {
    this.pending = false;
    const { canvas } = this;
    const scale = window.devicePixelRatio || 1;
    const width = Math.max(1, Math.round(canvas.clientWidth * scale));
    const height = Math.max(1, Math.round(canvas.clientHeight * scale));
    if (canvas.width !== width || canvas.height !== height) Object.assign(canvas, { width, height });
    const pen = canvas.getContext("2d");
    pen.clearRect(0, 0, width, height);
    pen.fillStyle = getComputedStyle(canvas).getPropertyValue(this.color);
    const column = width / COLUMNS;
    for (let i = 0; i < COLUMNS; i++) {
      const tall = Math.max(scale, Math.sqrt(Math.min(1, this.peaks[i])) * height * 0.95);
      pen.fillRect(i * column, (height - tall) / 2, Math.max(1, column * 0.7), tall);
    }
  }
}
