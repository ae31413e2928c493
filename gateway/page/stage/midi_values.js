// What the bytes of a MIDI controller mean: knobs of 7 and 14 bit, endless ones, keys.

const [NOTE_OFF, NOTE_ON, CONTROL] = [0x80, 0x90, 0xb0];
const LOW = 32; // a controller of 14 bit: its low bits come as the one 32 above
const TOGETHER_MS = 50;

/** How a controller sends its values -> what people call that. */
export const ENCODINGS = {
  "": "0 to 127",
  "14_bit": "14 bit",
  twos_complement: "endless, two's complement",
  binary_offset: "endless, around 64",
  signed_bit: "endless, sign bit",
};

/** {kind, number, channel, value} of a message of a knob or key; null for others. */
export function readMessage([status, number, value]) {
  const [kind, channel] = [status & 0xf0, status & 0x0f];
  if (kind === CONTROL) return { kind: "midi_cc", number, channel, value };
  if (kind === NOTE_ON || kind === NOTE_OFF) return { kind: "midi_note", number, channel, value: kind === NOTE_ON ? value : 0 };
  return null;
}

export function comesFrom(source, { kind, number, channel }) {
  if ((source.channel ?? channel) !== channel) return false;
  const isLow = source.encoding === "14_bit" && kind === "midi_cc" && source.midi_cc + LOW === number;
  return source[kind] === number || isLow;
}

const STEPS_OF = {
  twos_complement: (value) => (value < 64 ? value : value - 128),
  binary_offset: (value) => value - 64,
  signed_bit: (value) => (value < 64 ? value : 64 - value),
};

/** Whether a knob has no ends: it says how far it was turned. */
export const isEndless = ({ encoding }) => encoding in STEPS_OF;

/** How many steps an endless knob was turned, to the right or, below 0, to the left. */
export const stepsOf = ({ encoding }, value) => STEPS_OF[encoding](value);

/** Where knobs of 14 bit stand: they say it in two messages. */
export class Positions {
  #high = new Map();

  /** From 0 to 1. A new high part begins with a low part of 0, as the standard has it. */
  of(source, { number, channel, value }) {
    if (source.encoding !== "14_bit") return value / 127;
    const key = `${channel}/${source.midi_cc}`;
    if (number === source.midi_cc) this.#high.set(key, value);
    const low = number === source.midi_cc ? 0 : value;
    return ((this.#high.get(key) ?? 0) * 128 + low) / 16_383;
  }
}

/** The controller of 14 bit that two messages in a row belong to, or null. Each has a `time`. */
export function pairOf(one, other) {
  if (one.kind !== "midi_cc" || other.kind !== "midi_cc" || one.channel !== other.channel) return null;
  const low = Math.min(one.number, other.number);
  const isPair = low < LOW && Math.abs(one.number - other.number) === LOW && other.time - one.time < TOGETHER_MS;
  return isPair ? low : null;
}
