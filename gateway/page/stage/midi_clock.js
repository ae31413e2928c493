// A MIDI clock: 24 messages in a beat. The pace is the median of the last 24; the server is told with every beat.

const [CLOCK, START, CONTINUE, STOP] = [0xf8, 0xfa, 0xfb, 0xfc];
const PER_BEAT = 24;
const LOST_MS = 500; // 24 in a beat at 20 BPM come every 125 ms

export class MidiClock {
  #tempo;
  #times = [];
  #count = 0; // since the first beat of a bar
  #runs = true;

  /** tempo: follow(bpm, beat), beatsPerBar. */
  constructor(tempo) {
    this.#tempo = tempo;
  }

  receive(message, time) {
    if (message === START) {
      this.#count = 0;
      this.#times = [];
      this.#runs = true;
    }
    if (message === CONTINUE) this.#runs = true;
    if (message === STOP) this.#runs = false;
    if (message === CLOCK && this.#runs) this.#tick(time);
  }

  #tick(time) {
    if (time - this.#times.at(-1) > LOST_MS) this.#times = [];
    this.#times.push(time);
    if (this.#times.length > PER_BEAT + 1) this.#times.shift();
    const beats = this.#count / PER_BEAT;
    this.#count += 1;
    if (this.#times.length <= PER_BEAT || !Number.isInteger(beats)) return;
    const gaps = this.#times.slice(1).map((each, index) => each - this.#times[index]);
    const middle = gaps.toSorted((a, b) => a - b)[PER_BEAT >> 1];
    const bpm = Math.min(300, Math.max(20, 60_000 / (middle * PER_BEAT)));
    this.#tempo.follow(Math.round(bpm * 10) / 10, (beats % this.#tempo.beatsPerBar) + 1);
  }
}
