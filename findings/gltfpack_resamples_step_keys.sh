#!/usr/bin/env bash
# gltfpack 1.3.0 (npm) resamples STEP animations to 30 Hz unless told `-af 0`: a flip-book of 24 frames a
# second (one node a frame, its scale 0 or 1) loses frames, without a word.
# Expected: what plays before also plays after; -noq, -kn and the like change sizes, not moments.
# Seen: at the middle of frame i the original shows i; packed with the defaults 5 of 16 frames are never
# shown; with `-af 0` all are.
set -euo pipefail
work=$(mktemp -d); trap 'rm -rf "$work"' EXIT; cd "$work"
npm init -y >/dev/null; npm install --silent gltfpack@1.3.0 >/dev/null
cat > flipbook.mjs <<'JS'
// 16 triangles of different size, shown one after the other at 24 a second
import fs from "fs";
const FPS = 24, N = 16, parts = [], views = [], accessors = [];
let length = 0;
const add = (array, type, componentType, target) => {
  const data = Buffer.from(array.buffer), width = { SCALAR: 1, VEC3: 3 }[type];
  views.push({ buffer: 0, byteOffset: length, byteLength: data.length, ...(target && { target }) });
  const columns = [...Array(width).keys()].map((c) => [...array].filter((_, i) => i % width === c));
  accessors.push({ bufferView: views.length - 1, componentType, type, count: array.length / width,
    min: columns.map((c) => Math.min(...c)), max: columns.map((c) => Math.max(...c)) });
  parts.push(data, Buffer.alloc(-data.length & 3)); length += data.length + (-data.length & 3);
  return accessors.length - 1;
};
const meshes = [], nodes = [], samplers = [], channels = [];
for (let i = 0; i < N; i++) {
  const s = 1 + i / N;
  const position = add(new Float32Array([0, 0, 0, s, 0, 0, 0, s, 0]), "VEC3", 5126, 34962);
  const indices = add(new Uint32Array([0, 1, 2]), "SCALAR", 5125, 34963);
  meshes.push({ primitives: [{ attributes: { POSITION: position }, indices }] });
  nodes.push({ name: `frame_${i}`, mesh: i, ...(i && { scale: [0, 0, 0] }) });
  const keys = [[i / FPS, 1], [(i + 1) / FPS, i === N - 1 ? 1 : 0]];
  if (i) keys.unshift([0, 0]);
  samplers.push({ interpolation: "STEP",
    input: add(new Float32Array(keys.map((k) => k[0])), "SCALAR", 5126),
    output: add(new Float32Array(keys.flatMap((k) => [k[1], k[1], k[1]])), "VEC3", 5126) });
  channels.push({ sampler: i, target: { node: i, path: "scale" } });
}
const text = JSON.stringify({ asset: { version: "2.0" }, scene: 0, scenes: [{ nodes: nodes.map((_, i) => i) }],
  nodes, meshes, animations: [{ samplers, channels }], accessors, bufferViews: views, buffers: [{ byteLength: length }] });
const json = Buffer.from(text + " ".repeat(-text.length & 3)), bin = Buffer.concat(parts), u32 = (...n) => Buffer.from(Uint32Array.from(n).buffer);
fs.writeFileSync("flipbook.glb", Buffer.concat([u32(0x46546c67, 2, 28 + json.length + bin.length),
  u32(json.length, 0x4e4f534a), json, u32(bin.length, 0x004e4942), bin]));
JS
cat > shown.mjs <<'JS'
// which node is shown at the middle of each of 16 frames at 24 a second
import fs from "fs";
const b = fs.readFileSync(process.argv[2]), n = b.readUInt32LE(12), bin = b.subarray(28 + n);
const g = JSON.parse(b.subarray(20, 20 + n));
const first = (index) => {
  const a = g.accessors[index], v = g.bufferViews[a.bufferView], width = { SCALAR: 1, VEC3: 3 }[a.type];
  return [...Array(a.count).keys()].map((k) =>
    bin.readFloatLE((v.byteOffset ?? 0) + (a.byteOffset ?? 0) + k * (v.byteStride ?? 4 * width)));
};
const { channels, samplers } = g.animations[0];
const tracks = channels.map((c) => ({ times: first(samplers[c.sampler].input), scales: first(samplers[c.sampler].output) }));
const at = (t) => tracks.map(({ times, scales }, i) => (scales[Math.max(0, times.filter((x) => x <= t + 1e-6).length - 1)] > 0 ? i : null))
  .filter((i) => i !== null).join("+");
console.log([...Array(16).keys()].map((i) => at((i + 0.5) / 24)).join(" "));
JS
node flipbook.mjs
npx gltfpack -i flipbook.glb -o defaults.glb
npx gltfpack -af 0 -i flipbook.glb -o af0.glb
all="0 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15"
for file in flipbook defaults af0; do printf '%-9s %s\n' $file "$(node shown.mjs $file.glb)"; done
[ "$(node shown.mjs flipbook.glb)" = "$all" ]
[ "$(node shown.mjs af0.glb)" = "$all" ]
[ "$(node shown.mjs defaults.glb)" = "0 0 2 3 4 4 6 7 8 8 10 11 12 12 14 15" ]
