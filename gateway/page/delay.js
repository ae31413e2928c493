// How long a picture takes from the input to the output, found by looking at the pictures themselves.
//
// Small grey copies of both videos are kept with their times. What stands still in them is subtracted; the shift in
// time at which the moving rest of the output correlates best with that of the input is the delay.

const WIDTH = 16;
const HEIGHT = 12;
const OUTPUT_WINDOW_MS = 2_500;
const MAX_DELAY_MS = 6_000;
const STEP_MS = 8;
const MAX_GAP_MS = 60; // an input picture further from the wanted time does not count
const MIN_PAIRS = 12;
const MIN_MOVEMENT = 1; // mean square of grey levels; below that the picture stands still
const MIN_CORRELATION = 0.4;
const MIN_LEAD = 0.2; // above the median of all shifts
const SAME_PEAK = 0.97; // of several equal peaks (periodic movement) the earliest counts

/** Makes small grey copies of video frames. */
export class Thumbnailer {
  #context;

  constructor() {
    const canvas = document.createElement("canvas");
    Object.assign(canvas, { width: WIDTH, height: HEIGHT });
    this.#context = canvas.getContext("2d", { alpha: false, willReadFrequently: true });
  }

  /** Float32Array of WIDTH * HEIGHT grey levels, 0..255. */
  take(video) {
    this.#context.drawImage(video, 0, 0, WIDTH, HEIGHT);
    const { data } = this.#context.getImageData(0, 0, WIDTH, HEIGHT);
    const grey = new Float32Array(WIDTH * HEIGHT);
    for (let i = 0; i < grey.length; i += 1) {
      grey[i] = 0.299 * data[4 * i] + 0.587 * data[4 * i + 1] + 0.114 * data[4 * i + 2];
    }
    return grey;
  }
}

export class DelayEstimator {
  #inputs = []; // {time, grey}, oldest first
  #outputs = [];

  clear() {
    this.#inputs = [];
    this.#outputs = [];
  }

  /** time: milliseconds on the clock of performance.now(), when the picture was taken. */
  addInput(time, grey) {
    add(this.#inputs, { time, grey }, OUTPUT_WINDOW_MS + MAX_DELAY_MS);
  }

  /** time: when the picture was shown. */
  addOutput(time, grey) {
    add(this.#outputs, { time, grey }, OUTPUT_WINDOW_MS);
  }

  /** Milliseconds, or null when the pictures do not tell (no movement, no likeness, too few). */
  estimate() {
    if (this.#outputs.length < MIN_PAIRS || this.#inputs.length < MIN_PAIRS) return null;
    const inputs = movement(this.#inputs);
    const outputs = movement(this.#outputs);
    const scores = []; // [delay, correlation]
    for (let delay = 0; delay <= MAX_DELAY_MS; delay += STEP_MS) {
      const score = correlation(inputs, outputs, delay);
      if (score !== null) scores.push([delay, score]);
    }
    return peak(scores);
  }
}

function add(list, item, windowMs) {
  list.push(item);
  while (list[0].time < item.time - windowMs) list.shift();
}

/** Subtracts the mean picture. */
function movement(list) {
  const mean = new Float32Array(WIDTH * HEIGHT);
  for (const { grey } of list) for (let i = 0; i < mean.length; i += 1) mean[i] += grey[i] / list.length;
  return list.map(({ time, grey }) => {
    const rest = grey.map((level, i) => level - mean[i]);
    return { time, rest, energy: dot(rest, rest) };
  });
}

function correlation(inputs, outputs, delay) {
  let [product, inputEnergy, outputEnergy, pairs, at] = [0, 0, 0, 0, 0];
  for (const output of outputs) {
    const wanted = output.time - delay;
    while (at + 1 < inputs.length && distance(inputs[at + 1], wanted) <= distance(inputs[at], wanted)) at += 1;
    const input = inputs[at];
    if (distance(input, wanted) > MAX_GAP_MS) continue;
    product += dot(input.rest, output.rest);
    inputEnergy += input.energy;
    outputEnergy += output.energy;
    pairs += 1;
  }
  const movementOf = (energy) => energy / pairs / (WIDTH * HEIGHT);
  if (pairs < MIN_PAIRS || pairs < outputs.length / 2) return null;
  if (movementOf(inputEnergy) < MIN_MOVEMENT || movementOf(outputEnergy) < MIN_MOVEMENT) return null;
  return product / Math.sqrt(inputEnergy * outputEnergy);
}

function peak(scores) {
  if (!scores.length) return null;
  const sorted = scores.map(([, score]) => score).sort((a, b) => a - b);
  const [best, median] = [sorted[sorted.length - 1], sorted[sorted.length >> 1]];
  if (best < MIN_CORRELATION || best - median < MIN_LEAD) return null;
  // All shifts that use the same pairs of pictures score alike: take the middle of the first such stretch.
  const first = scores.findIndex(([, score]) => score >= best * SAME_PEAK);
  let last = first;
  while (last + 1 < scores.length && scores[last + 1][1] >= best * SAME_PEAK) last += 1;
  return (scores[first][0] + scores[last][0]) / 2;
}

function distance(item, time) {
  return Math.abs(item.time - time);
}

function dot(a, b) {
  let sum = 0;
  for (let i = 0; i < a.length; i += 1) sum += a[i] * b[i];
  return sum;
}
