// The Moshi WebSocket with 16-bit samples in place of Opus, and the way back after a lost connection.

export const RATE_HZ = 24000;
export const FRAME = 1920;

const HANDSHAKE = 0, AUDIO = 1, TEXT = 2, METADATA = 4, ERROR = 5;
const RETRIES = 6;

/** A key is missing or wrong. */
export class KeyNeeded extends Error {}

/** The server's ticket for one connection; `key` may be empty. */
async function ticket(key) {
  const headers = key ? { Authorization: `Bearer ${key}` } : {};
  const answer = await fetch("/api/ticket", { method: "POST", headers, cache: "no-store" });
  if (answer.status === 401) throw new KeyNeeded("The server does not know this key.");
  if (!answer.ok) throw new Error(`The server answered ${answer.status}.`);
  return (await answer.json()).ticket;
}

/**
 * A conversation that survives lost connections. `on` has the callbacks ready, audio(samples),
 * text(string), metadata(object), notice(string), waiting(string) and closed(reason).
 */
export class Conversation {
  constructor(settings, key, on) {
    this.settings = settings;
    this.key = key;
    this.on = on;
    this.token = null;
    this.attempts = 0;
    this.stopped = false;
    this.sentAt = [];
  }

  async open() {
    const pass = await ticket(this.key);
    if (this.stopped) return;
    const query = new URLSearchParams({ ...this.settings, audio: "pcm16", stats: "1" });
    if (this.token) query.set("resume", this.token);
    const scheme = location.protocol === "https:" ? "wss:" : "ws:";
    const url = `${scheme}//${location.host}/api/chat?${query}`;
    const socket = new WebSocket(url, ["moshi", `ticket.${pass}`]);
    socket.binaryType = "arraybuffer";
    socket.onmessage = (event) => this.#message(new Uint8Array(event.data));
    socket.onclose = (event) => this.#closed(event);
    this.socket = socket;
    this.ready = false;
    this.sentAt = [];
    this.on.waiting("Waiting for the model …");
  }

  /** Sends samples in -1..1. */
  send(samples) {
    if (!this.ready || this.socket.readyState !== WebSocket.OPEN) return;
    const message = new DataView(new ArrayBuffer(1 + 2 * samples.length));
    message.setUint8(0, AUDIO);
    for (let i = 0; i < samples.length; i++) {
      const limited = Math.max(-1, Math.min(1, samples[i]));
      message.setInt16(1 + 2 * i, Math.round(limited * 32767), true);
    }
    this.socket.send(message.buffer);
    this.sentAt.push(performance.now());
    if (this.sentAt.length > 100) this.sentAt.shift();
  }

  stop() {
    this.stopped = true;
    clearTimeout(this.timer);
    if (this.socket) this.socket.close(1000);
  }

  #message(bytes) {
    const text = () => new TextDecoder().decode(bytes.subarray(1));
    switch (bytes[0]) {
      case HANDSHAKE:
        this.ready = true;
        this.attempts = 0;
        this.on.ready();
        break;
      case AUDIO: {
        const view = new DataView(bytes.buffer, bytes.byteOffset + 1, bytes.byteLength - 1);
        const samples = new Float32Array(view.byteLength >> 1);
        for (let i = 0; i < samples.length; i++) samples[i] = view.getInt16(2 * i, true) / 32768;
        const sent = this.sentAt.shift();
        this.on.audio(samples, sent === undefined ? null : performance.now() - sent);
        break;
      }
      case TEXT:
        this.on.text(text());
        break;
      case METADATA: {
        const metadata = JSON.parse(text());
        this.token = metadata.resume_token ?? null;
        if (metadata.dropped_frames !== this.dropped) {
          // Dropped frames have no answer: start counting anew.
          this.dropped = metadata.dropped_frames;
          this.sentAt = [];
        }
        this.on.metadata(metadata);
        break;
      }
      case ERROR:
        this.on.notice(text());
        break;
    }
  }

  #closed(event) {
    this.ready = false;
    const lost = event.code === 1006 || event.code === 1005;
    if (this.stopped || !lost || this.attempts >= RETRIES) {
      const reason = event.reason || (lost ? "The connection is lost." : "");
      this.on.closed(this.stopped ? "" : reason || `The server closed with code ${event.code}.`);
      return;
    }
    const seconds = Math.min(8, 0.5 * 2 ** this.attempts++);
    this.on.waiting(`Connection lost; trying again in ${seconds} s …`);
    this.timer = setTimeout(() => {
      this.open().catch((error) => {
        if (error instanceof KeyNeeded) this.on.closed(error.message);
        else this.#closed({ code: 1006, reason: "" });
      });
    }, seconds * 1000);
  }
}
