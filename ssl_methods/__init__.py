"""Image-only self-supervised methods on ALBEF's vision backbone, momentum copies, queue, loop and data.

None is implemented yet; MoCo v1, v2 and v3, BYOL and Barlow Twins come here, each in a file of its own.
"""
