"""Sound devices of files: what the module ``sounddevice`` is to a client, without a sound card.

The microphone is the wav file in SHIM_INPUT, then silence; after SHIM_SECONDS the process gets an
interrupt, as from Ctrl-C, half a second later. The loudspeaker is the wav file in SHIM_OUTPUT.
"""

import os
import signal
import threading
import time
import wave

import numpy as np

LAST_BLOCKS = 6
INTERRUPT_AGAIN_S = 5.0


def _interrupt():
    """Presses Ctrl-C, again where the client has not ended after some seconds, as people do."""
    while True:
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(INTERRUPT_AGAIN_S)


class _Stream:
    def __init__(self, samplerate, channels, blocksize, callback, **_):
        assert channels == 1
        self.rate, self.block, self.callback = int(samplerate), blocksize, callback
        self.running = threading.Event()
        self.thread = threading.Thread(target=self._run, daemon=True)

    def start(self):
        self.running.set()
        self.thread.start()

    def stop(self):
        self.running.clear()
        self.thread.join(timeout=2)

    close = stop

    def __enter__(self):
        self.start()
        return self

    def __exit__(self, *_):
        self.stop()

    def _run(self):
        start = time.monotonic()
        blocks = 0
        while self.running.is_set():
            self._block(blocks)
            blocks += 1
            due = start + blocks * self.block / self.rate
            time.sleep(max(0.0, due - time.monotonic()))
        self._end()

    def _end(self):
        pass


class InputStream(_Stream):
    def __init__(self, *args, **options):
        super().__init__(*args, **options)
        with wave.open(os.environ["SHIM_INPUT"]) as wav:
            assert wav.getframerate() == self.rate
            assert wav.getsampwidth() == 2
            data = np.frombuffer(wav.readframes(wav.getnframes()), np.int16)
            self.samples = data.reshape(-1, wav.getnchannels())[:, 0].astype(np.float32) / 32768
        self.last = int(float(os.environ["SHIM_SECONDS"]) * self.rate / self.block)

    def _block(self, number):
        if number >= self.last:
            # What was said has its answer before the client is interrupted.
            if number == self.last + LAST_BLOCKS:
                threading.Thread(target=_interrupt, daemon=True).start()
            return
        block = np.zeros((self.block, 1), np.float32)
        part = self.samples[number * self.block : (number + 1) * self.block]
        block[: len(part), 0] = part
        self.callback(block, self.block, None, None)


class OutputStream(_Stream):
    def __init__(self, *args, **options):
        super().__init__(*args, **options)
        self.wav = wave.open(os.environ["SHIM_OUTPUT"], "wb")
        self.wav.setnchannels(1)
        self.wav.setsampwidth(2)
        self.wav.setframerate(self.rate)

    def _block(self, _):
        block = np.zeros((self.block, 1), np.float32)
        self.callback(block, self.block, None, None)
        samples = np.clip(block[:, 0] * 32768, -32768, 32767).astype(np.int16)
        self.wav.writeframes(samples.tobytes())

    def _end(self):
        self.wav.close()
