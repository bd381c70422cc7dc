#!/usr/bin/env bash
# Makes three.min.js, the part of three.js that report.html plays the mesh with, as one script that
# defines THREE. Needs npm and a network; it is run by whoever wants another version, and the result
# is committed. three.js's licence (MIT) stands at its top, since every report carries a copy.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
three=0.187.0 esbuild=0.28.2

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
npm install --silent --no-audit --no-fund "three@$three" "esbuild@$esbuild"
cp node_modules/three/LICENSE "$here/LICENSE.txt"
cp "$here/exports.js" .
licence="/*! three.js $three
$(cat node_modules/three/LICENSE)*/"
node_modules/.bin/esbuild exports.js --bundle --minify --format=iife --global-name=THREE \
  --target=es2022 --legal-comments=none --banner:js="$licence" --outfile="$here/three.min.js"
