"""From a photo to what the stages are given: a cut-out, its depth, its normals and a caption."""
