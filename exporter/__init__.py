"""4D assets: meshes, GLB, point clouds."""
