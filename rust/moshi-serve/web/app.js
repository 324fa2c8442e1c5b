// The page: what is shown, and what the buttons do.

import { Conversation, KeyNeeded } from "./protocol.js";
import { Scope } from "./scope.js";
import { Sound, explain, microphones } from "./sound.js";

const $ = (id) => document.getElementById(id);
const SETTINGS = ["audio_temperature", "text_temperature", "audio_topk", "text_topk", "seed"];
const MOST_TEXT = 20000;

const user = new Scope($("scope-user"), "--user");
const model = new Scope($("scope-model"), "--model");
let conversation = null;
let sound = null;
let latencies = [];

function status(text) {
  $("status").textContent = text;
}

function problem(text) {
  $("problem").textContent = text;
  $("problem").hidden = !text;
}

function fact(name, text) {
  const place = $(`fact-${name}`);
  if (place.textContent !== text) place.textContent = text;
}

function settings() {
  const chosen = {};
  for (const name of SETTINGS) {
    const field = $(name);
    if (field.value === "") continue;
    if (!field.checkValidity()) throw new RangeError(`${field.labels[0].textContent}: ${field.validationMessage}`);
    chosen[name] = field.value;
  }
  return chosen;
}

async function listMicrophones() {
  const field = $("microphone");
  const chosen = field.value;
  const options = (await microphones()).map((device, number) =>
    new Option(device.label || `Microphone ${number + 1}`, device.deviceId));
  field.replaceChildren(new Option("Default", ""), ...options);
  field.value = options.some((option) => option.value === chosen) ? chosen : "";
}

function running(is) {
  $("start").textContent = is ? "Stop" : "Start talking";
  $("start").classList.toggle("primary", !is);
  $("mute").disabled = !is;
}

function setMuted(muted) {
  if (sound) sound.muted = muted;
  $("mute").setAttribute("aria-pressed", String(muted));
  $("mute").textContent = muted ? "Unmute" : "Mute";
}

const heard = {
  ready: () => {
    sound?.clear();
    status("The model listens. Speak.");
  },
  waiting: status,
  notice: (text) => status(`The server says: ${text}`),
  text: (text) => {
    const said = $("said");
    const whole = (said.textContent + text).slice(-MOST_TEXT);
    said.textContent = whole.trimStart();
    said.scrollTop = said.scrollHeight;
  },
  audio: (samples, latency) => {
    model.add(samples);
    sound?.play(samples);
    if (latency !== null) {
      latencies.push(latency);
      if (latencies.length > 25) latencies.shift();
      const sorted = [...latencies].sort((a, b) => a - b);
      fact("latency", `${sorted[sorted.length >> 1].toFixed(0)} ms`);
    }
  },
  metadata: (metadata) => {
    fact("lag", `${metadata.lag_ms} ms`);
    fact("dropped", String(metadata.dropped_frames));
    fact("model", metadata.lm_model_file);
  },
  closed: (reason) => {
    if (reason) problem(reason);
    void stop();
  },
};

async function start() {
  problem("");
  let chosen;
  try {
    chosen = settings();
  } catch (error) {
    problem(error.message);
    return;
  }
  running(true);
  status("Asking for the microphone …");
  $("said").textContent = "";
  latencies = [];
  const key = sessionStorage.getItem("key") || "";
  const mine = new Conversation(chosen, key, heard);
  conversation = mine;
  try {
    sound = await Sound.open($("microphone").value, {
      frame: (samples) => {
        user.add(samples);
        mine.send(samples);
      },
      state: ({ buffered_ms, late }) => {
        fact("buffer", `${buffered_ms.toFixed(0)} ms`);
        fact("late", String(late));
      },
      gone: () => {
        problem("The microphone is gone. Connect it again, or choose another.");
        void stop();
      },
    });
  } catch (error) {
    problem(explain(error));
    await stop();
    return;
  }
  if (conversation !== mine) return; // stopped meanwhile
  setMuted(false);
  void listMicrophones();
  status("Connecting …");
  try {
    await mine.open();
    $("key-form").hidden = true;
  } catch (error) {
    if (error instanceof KeyNeeded) {
      $("key-form").hidden = false;
      $("key").focus();
      if (key) problem(error.message);
    } else {
      problem(`The server cannot be reached: ${error.message}`);
    }
    await stop();
  }
}

async function stop() {
  const [talk, audio] = [conversation, sound];
  conversation = sound = null;
  running(false);
  setMuted(false);
  status("Not connected.");
  talk?.stop();
  await audio?.close();
}

$("start").addEventListener("click", () => void (conversation ? stop() : start()));
$("mute").addEventListener("click", () => setMuted(!sound?.muted));
$("key-form").addEventListener("submit", (event) => {
  event.preventDefault();
  sessionStorage.setItem("key", $("key").value.trim());
  $("key").value = "";
  void start();
});
navigator.mediaDevices?.addEventListener?.("devicechange", () => void listMicrophones());
void listMicrophones();
if (!window.isSecureContext) problem(explain(new DOMException("", "SecurityError")));
