"""What each loss of a log is, and what to see in its curve. Logged losses have no weight yet."""

WORDS = {
    # on your picture
    "rgb": (
        "Colours at the reference camera against your picture. It should fall and stay low; flat "
        "and high means that the picture isn't matched."
    ),
    "mask": (
        "Silhouette against the cut-out's. It falls fast, then lies flat; a rise later on means "
        "that the shape is being lost."
    ),
    # guidance
    "sd": (
        "How far the image prior would change a view from a random side. Each step draws another "
        "amount of noise, so it jumps; look for a mean that falls, then lies flat."
    ),
    "3d_sd": (
        "How far Zero123 would change a view from another side. Each step draws another view and "
        "amount of noise, so it jumps; look for a mean that falls, then lies flat."
    ),
    "sds_video": (
        "How hard the video prior pulls at a clip; 0 is not its goal. Noise within a band is as it "
        "should be, a climb that doesn't end means that the scene leaves what the prior knows. "
        "Judge the motion by the video."
    ),
    "cn_sds": (
        "How hard the tile prior pulls at the detail of frames; 0 is not its goal. Noise within a "
        "band is as it should be; a steady climb means that detail is being broken, not made."
    ),
    # on every view
    "normal_smoothness_2d": (
        "Roughness of the shaded surface. It should fall and lie flat; at 0 all detail is gone."
    ),
    "orient": (
        "Surface that faces away from whoever sees it. It should fall towards 0; flat and high "
        "means fog without a surface."
    ),
    "sparsity": (
        "How much of the views is covered; 0.1 is an empty picture. It lies flat at the subject's "
        "size; a climb means that fog spreads."
    ),
    "opaque": (
        "Pixels that are neither clear nor solid. It should fall; flat and high means a subject "
        "that one sees through."
    ),
    "z_variance": (
        "Thickness of the surface along a ray. It should fall; flat and high means fog in place of "
        "a skin."
    ),
    "tv": (
        "Differences of neighbouring pixels. It falls as speckles go and lies flat at the "
        "picture's own edges; near 0 all is one colour."
    ),
    # on the deformation
    "arap": (
        "How much the motion stretches and shears the body. It rises from 0 as motion begins and "
        "should level off; a climb that doesn't end means that the body is torn."
    ),
    "fold": (
        "Space that the motion turns inside out. It should be 0 or close to it; spikes that go "
        "again do no harm, a lasting rise does."
    ),
    # the token
    "loss": (
        "How well the denoiser, told the token, knows pictures of your subject. Each step draws "
        "another amount of noise, so it jumps; a mean that sinks a little is all there is to see."
    ),
}
