// The model's frames to the loudspeaker, with as small a buffer as the connection allows.

const RATE_HZ = 24000;
// Seconds that a frame may come later than the one before it.
const SMALLEST = 0.03, LARGEST = 0.3, GROWTH = 0.04;
const TOO_LONG = 0.32; // above what the margin asks for: skip to it

class Playback extends AudioWorkletProcessor {
  constructor() {
    super();
    this.queue = [];
    this.offset = 0;
    this.buffered = 0; // samples at the model's rate
    this.margin = SMALLEST;
    this.held = 0; // samples of the output between the first frame and its sound
    this.playing = false;
    this.late = 0;
    this.step = RATE_HZ / sampleRate;
    this.fraction = 0;
    this.current = 0;
    this.next = 0;
    this.blocks = 0;
    this.port.onmessage = ({ data }) => {
      if (data === "clear") {
        this.queue = [];
        this.offset = this.buffered = this.held = 0;
        this.playing = false;
        return;
      }
      this.queue.push(data);
      this.buffered += data.length;
      const wanted = data.length + this.margin * RATE_HZ;
      if (this.buffered > wanted + TOO_LONG * RATE_HZ) {
        while (this.buffered > wanted) this.take();
      }
    };
  }

  take() {
    const chunk = this.queue[0];
    if (!chunk) return 0;
    const sample = chunk[this.offset++];
    this.buffered--;
    if (this.offset === chunk.length) {
      this.queue.shift();
      this.offset = 0;
    }
    return sample;
  }

  process(_inputs, outputs) {
    const output = outputs[0][0];
    if (!this.playing && this.buffered > 0) {
      this.held += output.length;
      this.playing = this.held >= this.margin * sampleRate;
    }
    for (let i = 0; i < output.length && this.playing; i++) {
      this.fraction += this.step;
      while (this.fraction >= 1) {
        if (this.buffered === 0) {
          this.playing = false;
          this.held = 0;
          this.late++;
          this.margin = Math.min(LARGEST, this.margin + GROWTH);
          break;
        }
        this.current = this.next;
        this.next = this.take();
        this.fraction -= 1;
      }
      output[i] = this.current + (this.next - this.current) * Math.min(1, this.fraction);
    }
    if (++this.blocks % 32 === 0) {
      this.port.postMessage({ buffered_ms: (1000 * this.buffered) / RATE_HZ, late: this.late });
    }
    return true;
  }
}

registerProcessor("playback", Playback);
