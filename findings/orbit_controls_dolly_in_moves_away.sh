#!/usr/bin/env bash
# three.js 0.187.0: OrbitControls.dollyIn(1.1), documented as "programmatically dolly in", moves the camera
# away from its target; dollyIn(0.9) moves it nearer. dollyOut is the other way round. The distance is
# multiplied by what dollyIn gets and divided by what dollyOut gets. (The wheel passes factors below 1, so it
# is right.) A "+" button with a factor above 1 zooms out. An orthographic camera's zoom does the same.
# Expected: in with a factor above 1 is nearer, or the documentation says that the factor is below 1.
# Seen, from a distance of 10: dollyIn(1.1) 11.00, dollyIn(0.9) 9.00, dollyOut(1.1) 9.09, dollyOut(0.9) 11.11.
set -euo pipefail
work=$(mktemp -d); trap 'rm -rf "$work"' EXIT; cd "$work"
npm init -y >/dev/null; npm install --silent three@0.187.0 >/dev/null
cat > dolly.mjs <<'JS'
import assert from "assert";
import { OrthographicCamera, PerspectiveCamera, REVISION } from "three";
import { OrbitControls } from "three/addons/controls/OrbitControls.js";

const after = (camera, name, factor) => {
  camera.position.set(0, 0, 10);
  new OrbitControls(camera, null)[name](factor); // no element: no DOM is needed
  return camera;
};
for (const [name, factor, distance] of [["dollyIn", 1.1, 11], ["dollyIn", 0.9, 9], ["dollyOut", 1.1, 10 / 1.1], ["dollyOut", 0.9, 10 / 0.9]]) {
  const seen = after(new PerspectiveCamera(), name, factor).position.length();
  const { zoom } = after(new OrthographicCamera(), name, factor);
  console.log(`three r${REVISION}: ${name}(${factor}): distance 10 -> ${seen.toFixed(2)}, orthographic zoom 1 -> ${zoom.toFixed(2)}`);
  assert(Math.abs(seen - distance) < 1e-6 && Math.abs(zoom - 10 / distance) < 1e-6);
}
JS
node dolly.mjs
