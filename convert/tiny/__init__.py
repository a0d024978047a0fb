"""The built-in tiny Wan: a trained two-expert text-to-video model that ships with the package.

It is small and it is real: diffusers' `WanTransformer3DModel`, diffusers' `WanPipeline`, weights learnt from data. It
exists so that the demo, the tests and the README run on something that four bits can break.
"""
