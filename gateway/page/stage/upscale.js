// A smoother upscaling than the browser's own: a bicubic filter (Catmull-Rom) in WebGL, on a canvas above the video.

import { el } from "./dom.js";

const VERTEX = `#version 300 es
out vec2 at;
void main() {
  at = vec2(gl_VertexID == 1 ? 2.0 : 0.0, gl_VertexID == 2 ? 2.0 : 0.0);
  gl_Position = vec4(at * 2.0 - 1.0, 0.0, 1.0);
}`;
const FRAGMENT = `#version 300 es
precision highp float;
uniform sampler2D picture;
in vec2 at;
out vec4 colour;
vec4 weights(float t) {
  float t2 = t * t, t3 = t2 * t;
  return vec4(-t3 + 2.0 * t2 - t, 3.0 * t3 - 5.0 * t2 + 2.0, -3.0 * t3 + 4.0 * t2 + t, t3 - t2) * 0.5;
}
void main() {
  ivec2 size = textureSize(picture, 0);
  vec2 place = at * vec2(size) - 0.5;
  ivec2 corner = ivec2(floor(place));
  vec4 wx = weights(fract(place.x)), wy = weights(fract(place.y));
  vec3 sum = vec3(0.0);
  for (int y = 0; y < 4; y++) for (int x = 0; x < 4; x++) {
    ivec2 texel = clamp(corner + ivec2(x - 1, y - 1), ivec2(0), size - 1);
    sum += wx[x] * wy[y] * texelFetch(picture, texel, 0).rgb;
  }
  colour = vec4(clamp(sum, 0.0, 1.0), 1.0);
}`;

export class Upscaler {
  #video;
  #canvas = el("canvas", { className: "smooth", hidden: true, "aria-hidden": "true" });
  #gl = null;
  #enabled = false;
  #waiting = false; // for the next picture

  constructor(video) {
    this.#video = video;
    video.after(this.#canvas);
  }

  /** Without WebGL the browser's own filter stays. */
  enable(enabled) {
    this.#enabled = enabled && this.#prepare();
    if (!this.#enabled) this.#canvas.hidden = true;
    else this.#next();
  }

  clear() {
    this.#canvas.hidden = true;
  }

  #prepare() {
    if (this.#gl) return true;
    const gl = this.#canvas.getContext("webgl2", { antialias: false, alpha: false, preserveDrawingBuffer: true });
    if (!gl) return false;
    const program = gl.createProgram();
    for (const [kind, source] of [[gl.VERTEX_SHADER, VERTEX], [gl.FRAGMENT_SHADER, FRAGMENT]]) {
      const shader = gl.createShader(kind);
      gl.shaderSource(shader, source);
      gl.compileShader(shader);
      gl.attachShader(program, shader);
    }
    gl.linkProgram(program);
    if (!gl.getProgramParameter(program, gl.LINK_STATUS)) return false;
    gl.useProgram(program);
    gl.bindTexture(gl.TEXTURE_2D, gl.createTexture());
    for (const name of [gl.TEXTURE_MIN_FILTER, gl.TEXTURE_MAG_FILTER]) gl.texParameteri(gl.TEXTURE_2D, name, gl.NEAREST);
    gl.texParameteri(gl.TEXTURE_2D, gl.TEXTURE_WRAP_S, gl.CLAMP_TO_EDGE);
    gl.texParameteri(gl.TEXTURE_2D, gl.TEXTURE_WRAP_T, gl.CLAMP_TO_EDGE);
    gl.pixelStorei(gl.UNPACK_FLIP_Y_WEBGL, true);
    this.#gl = gl;
    return true;
  }

  #next() {
    if (this.#waiting || !this.#enabled) return;
    this.#waiting = true;
    this.#video.requestVideoFrameCallback(() => {
      this.#waiting = false;
      if (this.#enabled) this.#draw();
      this.#next();
    });
  }

  /** In the window's own pixels, and the picture's shape: the fit is done by CSS as for the video. */
  #draw() {
    const { videoWidth: width, videoHeight: height } = this.#video;
    if (!width || document.hidden) return;
    const scale = Math.max(1, Math.max(innerWidth / width, innerHeight / height) * devicePixelRatio);
    const size = { width: Math.round(width * scale), height: Math.round(height * scale) };
    if (this.#canvas.width !== size.width || this.#canvas.height !== size.height) Object.assign(this.#canvas, size);
    const gl = this.#gl;
    gl.viewport(0, 0, size.width, size.height);
    gl.texImage2D(gl.TEXTURE_2D, 0, gl.RGB, gl.RGB, gl.UNSIGNED_BYTE, this.#video);
    gl.drawArrays(gl.TRIANGLES, 0, 3);
    this.#canvas.hidden = false;
  }
}
