// What player.js needs of three.js; build.sh makes three.min.js of it.
export {
  AnimationMixer,
  Box3,
  DirectionalLight,
  HemisphereLight,
  MeshNormalMaterial,
  PerspectiveCamera,
  Scene,
  Vector3,
  WebGLRenderer,
} from "three";
export { OrbitControls } from "three/addons/controls/OrbitControls.js";
export { GLTFLoader } from "three/addons/loaders/GLTFLoader.js";
