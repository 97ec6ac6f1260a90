"""Explain a classifier of images: which pixels its answer rests on, by two methods.

Change ``digits_vit()`` to your model in evaluation mode and ``pixel_values`` to your images [batch, channels, height,
width], prepared as the model was trained. For convolutional networks try "epsilon-plus" and "epsilon-gamma-box".
"""

import fxlrp
from fxlrp.shipped import digits, digits_vit

model = digits_vit()
canvases = digits(2, seed=3)  # a digit somewhere on an empty canvas, and where it lies
inputs = {"pixel_values": canvases.images}

lrp = fxlrp.convert(model, "attnlrp-vit")
for name in ("attnlrp-vit", "chefer2021-vit"):
    result = lrp.with_ruleset(name).attribute(inputs, target=canvases.labels.tolist())
    heat = result.map((32, 32)).clamp(min=0)  # [batch, height, width], whether it was by pixel or by patch
    inside = (heat * canvases.masks).sum((1, 2)) / heat.sum((1, 2))
    print(f"{name}: {', '.join(f'{float(share):.0%}' for share in inside)} of the positive relevance lies on the digit")
    result.to_html(f"image-{name}.html")
