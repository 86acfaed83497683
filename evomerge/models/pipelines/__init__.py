"""Networks of pipelines that draw images: pools of one part of diffusers pipelines, the others kept."""
