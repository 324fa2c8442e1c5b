// The Moshi WebSocket with 16-bit samples in place of Opus, and the way back after a lost connection.

export const RATE_HZ = 24000;
export const FRAME = 1920;

const HANDSHAKE = 0, AUDIO = 1, TEXT = 2, METADATA = 4, ERROR = 5;
const RETRIES = 6;
// Ends after which the server, or another one in its place, may be there again.
const AGAIN = [1001, 1005, 1006, 1011, 1012];
const REFUSED = 1008;
// A server that listens sends something every five seconds, and takes what it is sent at once.
const SILENCE_MS = 8000;
const MOST_UNSENT_BYTES = 200000;
const CONNECT_MS = 10000;
const TICKET_MS = 5000;
const LOOK_MS = 500;

/** A key is missing or wrong. */
export class KeyNeeded extends Error {}

/** The server's ticket for one connection; `key` may be empty. */
async function ticket(key) {
  const headers = key ? { Authorization: `Bearer ${key}` } : {};
  // A connection that the browser kept may be as lost as ours.
  const signal = AbortSignal.timeout(TICKET_MS);
  const answer = await fetch("/api/ticket", { method: "POST", headers, cache: "no-store", signal });
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
    this.heardAt = performance.now();
    socket.onmessage = (event) => {
      this.heardAt = performance.now();
      this.#message(new Uint8Array(event.data));
    };
    socket.onclose = (event) => this.#closed(event);
    this.socket = socket;
    this.ready = false;
    this.sentAt = [];
    this.watch = setInterval(() => this.#look(socket), LOOK_MS);
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
    clearInterval(this.watch);
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

  /** A network that is gone closes nothing: silence has to be noticed. */
  #look(socket) {
    const silence = performance.now() - this.heardAt;
    const connecting = socket.readyState === WebSocket.CONNECTING;
    // In the waiting line the server says nothing that a page can see.
    const lost = connecting
      ? silence > CONNECT_MS
      : this.ready && (silence > SILENCE_MS || socket.bufferedAmount > MOST_UNSENT_BYTES);
    if (!lost) return;
    socket.onmessage = socket.onclose = null;
    socket.close();
    this.#closed({ code: 1006, reason: "" });
  }

  #closed(event) {
    clearInterval(this.watch);
    // A conversation that is not kept any more: a new one is better than none.
    const forgotten = event.code === REFUSED && this.token !== null && !this.ready;
    if (forgotten) this.token = null;
    this.ready = false;
    const again = forgotten || AGAIN.includes(event.code);
    if (this.stopped || !again || this.attempts >= RETRIES) {
      const reason = event.reason || (again ? "The connection is lost." : "");
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
