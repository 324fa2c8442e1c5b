// The model's frames to the loudspeaker, with as small a buffer as the connection allows.

const RATE_HZ = 24000;
const SMALLEST = 0.06, LARGEST = 0.4, GROWTH = 0.04; // seconds
const TOO_LONG = 0.32; // above the wanted buffer: skip to it

class Playback extends AudioWorkletProcessor {
  constructor() {
    super();
    this.queue = [];
    this.offset = 0;
    this.buffered = 0; // samples at the model's rate
    this.wanted = SMALLEST * RATE_HZ;
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
        this.offset = this.buffered = 0;
        this.playing = false;
        return;
      }
      this.queue.push(data);
      this.buffered += data.length;
      if (this.buffered > this.wanted + TOO_LONG * RATE_HZ) {
        while (this.buffered > this.wanted) this.take();
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
    if (!this.playing && this.buffered >= this.wanted) this.playing = true;
    for (let i = 0; i < output.length && this.playing; i++) {
      this.fraction += this.step;
      while (this.fraction >= 1) {
        if (this.buffered === 0) {
          this.playing = false;
          this.late++;
          this.wanted = Math.min(LARGEST * RATE_HZ, this.wanted + GROWTH * RATE_HZ);
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
