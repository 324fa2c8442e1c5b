// Microphone samples at the page's rate to frames at the model's.

const FRAME = 1920;
const RATE_HZ = 24000;

class Capture extends AudioWorkletProcessor {
  constructor() {
    super();
    this.step = sampleRate / RATE_HZ;
    this.frame = new Float32Array(FRAME);
    this.filled = 0;
    this.position = 0; // of the next output sample, in input samples from the current block's start
    this.last = 0;
    this.sum = 0;
    this.count = 0;
  }

  process(inputs) {
    const input = inputs[0][0];
    if (!input) return true;
    if (this.step === 1) {
      for (const sample of input) this.put(sample);
      return true;
    }
    // Each output sample is the mean of the input samples that it covers, which is filter enough
    // for speech; going up, the line between neighbours.
    for (let i = 0; i < input.length; i++) {
      if (this.step > 1) {
        this.sum += input[i];
        this.count++;
        this.position += 1;
        if (this.position >= this.step) {
          this.put(this.sum / this.count);
          this.position -= this.step;
          this.sum = 0;
          this.count = 0;
        }
      } else {
        while (this.position < 1) {
          this.put(this.last + (input[i] - this.last) * this.position);
          this.position += this.step;
        }
        this.position -= 1;
        this.last = input[i];
      }
    }
    return true;
  }

  put(sample) {
    this.frame[this.filled++] = sample;
    if (this.filled === FRAME) {
      this.port.postMessage(this.frame, [this.frame.buffer]);
      this.frame = new Float32Array(FRAME);
      this.filled = 0;
    }
  }
}

registerProcessor("capture", Capture);
