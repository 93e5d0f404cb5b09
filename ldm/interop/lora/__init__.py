"""LoRA files of diffusers, peft, kohya's tools and ComfyUI: names, strengths, metadata, the base they were made for."""
