// Microphone and loudspeaker.

import { RATE_HZ } from "./protocol.js";

/** What to do about a microphone that cannot be had, in words for people. */
export function explain(error) {
  if (!window.isSecureContext || !navigator.mediaDevices) {
    return "The browser gives a microphone only to pages over https or on this machine itself. " +
      "Open the page as https, or as http://localhost; the operator can start the server with --tls self-signed.";
  }
  switch (error.name) {
    case "NotAllowedError":
      return "The microphone is not allowed. Allow it for this page, behind the icon beside the address " +
        "or in the settings of the browser and of the system, then start again.";
    case "NotFoundError":
    case "OverconstrainedError":
      return "There is no such microphone. Connect one, or choose another in the settings below.";
    case "NotReadableError":
      return "The microphone is in use by another program, or the system does not let the browser have it.";
    default:
      return `The microphone does not start: ${error.message || error.name}`;
  }
}

/** Both directions of sound. `on` has frame(samples) and state({buffered_ms, late}). */
export class Sound {
  static async open(deviceId, on) {
    if (!navigator.mediaDevices) throw new DOMException("no microphone here", "SecurityError");
    const stream = await navigator.mediaDevices.getUserMedia({
      audio: {
        channelCount: 1,
        echoCancellation: true,
        noiseSuppression: true,
        autoGainControl: true,
        ...(deviceId ? { deviceId: { exact: deviceId } } : {}),
      },
    });
    let sound;
    try {
      // The browser resamples better than a worklet; not every one can do it for microphones.
      sound = await Sound.#build(new AudioContext({ sampleRate: RATE_HZ }), stream, on);
    } catch {
      try {
        sound = await Sound.#build(new AudioContext(), stream, on);
      } catch (error) {
        stream.getTracks().forEach((track) => track.stop());
        throw error;
      }
    }
    return sound;
  }

  static async #build(context, stream, on) {
    try {
      const source = context.createMediaStreamSource(stream);
      await Promise.all([
        context.audioWorklet.addModule("/web/capture-worklet.js"),
        context.audioWorklet.addModule("/web/playback-worklet.js"),
      ]);
      const capture = new AudioWorkletNode(context, "capture", { numberOfOutputs: 0 });
      const playback = new AudioWorkletNode(context, "playback", {
        numberOfInputs: 0,
        outputChannelCount: [1],
      });
      source.connect(capture);
      playback.connect(context.destination);
      await context.resume();
      return new Sound(context, stream, capture, playback, on);
    } catch (error) {
      await context.close();
      throw error;
    }
  }

  constructor(context, stream, capture, playback, on) {
    Object.assign(this, { context, stream, playback, muted: false });
    capture.port.onmessage = ({ data }) => {
      if (this.muted) data.fill(0);
      on.frame(data);
    };
    playback.port.onmessage = ({ data }) => on.state(data);
    stream.getAudioTracks()[0].onended = () => on.gone();
  }

  play(samples) {
    this.playback.port.postMessage(samples, [samples.buffer]);
  }

  clear() {
    this.playback.port.postMessage("clear");
  }

  async close() {
    this.stream.getTracks().forEach((track) => {
      track.onended = null;
      track.stop();
    });
    await this.context.close();
  }
}

/** Microphones by name; names are known once one was allowed. */
export async function microphones() {
  if (!navigator.mediaDevices?.enumerateDevices) return [];
  const devices = await navigator.mediaDevices.enumerateDevices();
  return devices.filter((device) => device.kind === "audioinput" && device.deviceId !== "default");
}
