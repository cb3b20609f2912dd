"""Tiny pipelines with random weights, built from configs: the parts are diffusers' and transformers' own."""

import diffusers
import torch
import transformers
from tokenizers import Tokenizer, models, pre_tokenizers, processors

LETTERS = "abcdefghijklmnopqrstuvwxyz0123456789,.-' "
TEXT = 16
"""Width of all text states."""


def clip_tokenizer():
    """Letters of a prompt, in CLIP's way: start, letters, end, filled up with the end."""
    vocabulary = [letter + end for end in ("", "</w>") for letter in LETTERS] + ["<|startoftext|>", "<|endoftext|>"]
    own = transformers.CLIPTokenizer(vocab={word: i for i, word in enumerate(vocabulary)}, merges=[])
    own.model_max_length = 77
    return own


def word_tokenizer():
    """Letters of a prompt, in T5's way: letters, end, filled up with <pad>."""
    vocabulary = {word: i for i, word in enumerate(["<pad>", "</s>", "<unk>", *LETTERS])}
    inside = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    inside.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    inside.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    own = transformers.PreTrainedTokenizerFast(
        tokenizer_object=inside, pad_token="<pad>", eos_token="</s>", unk_token="<unk>", bos_token="</s>"
    )
    own.model_max_length = 64
    return own


def clip_text(projection=False):
    size = {"hidden_size": TEXT, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    vocabulary = len(clip_tokenizer())
    ends = {"bos_token_id": vocabulary - 2, "eos_token_id": vocabulary - 1, "pad_token_id": 1}
    config = transformers.CLIPTextConfig(vocab_size=vocabulary, projection_dim=TEXT, **size, **ends)
    torch.manual_seed(1)
    return (transformers.CLIPTextModelWithProjection if projection else transformers.CLIPTextModel)(config).eval()


def t5_text(width=TEXT):
    size = {"d_model": width, "d_kv": 8, "d_ff": 32, "num_layers": 2, "num_heads": 2}
    torch.manual_seed(2)
    return transformers.T5EncoderModel(transformers.T5Config(vocab_size=len(word_tokenizer()), **size)).eval()


def gemma_text():
    size = {"hidden_size": TEXT, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    more = {"num_key_value_heads": 1, "head_dim": 8, "vocab_size": len(word_tokenizer()), "pad_token_id": 0}
    torch.manual_seed(3)
    return transformers.Gemma2Model(transformers.Gemma2Config(**size, **more)).eval()


def vae(channels=4, shift=None):
    torch.manual_seed(4)
    return diffusers.AutoencoderKL(
        in_channels=3,
        out_channels=3,
        latent_channels=channels,
        block_out_channels=(8, 8),
        layers_per_block=1,
        norm_num_groups=4,
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        scaling_factor=0.18215 if shift is None else 1.5305,
        shift_factor=shift,
        use_quant_conv=shift is None,
        use_post_quant_conv=shift is None,
    ).eval()


def deep_vae():
    torch.manual_seed(4)
    return diffusers.AutoencoderDC(
        in_channels=3,
        latent_channels=4,
        attention_head_dim=8,
        encoder_block_types=("ResBlock", "EfficientViTBlock"),
        decoder_block_types=("ResBlock", "EfficientViTBlock"),
        encoder_block_out_channels=(8, 8),
        decoder_block_out_channels=(8, 8),
        encoder_layers_per_block=(1, 1),
        decoder_layers_per_block=(1, 1),
        encoder_qkv_multiscales=((), (5,)),
        decoder_qkv_multiscales=((), (5,)),
        scaling_factor=0.41407,
    ).eval()


def unet_condition(**changes):
    torch.manual_seed(5)
    own = {
        "sample_size": 8,
        "in_channels": 4,
        "out_channels": 4,
        "block_out_channels": (8, 16),
        "layers_per_block": 1,
        "norm_num_groups": 4,
        "attention_head_dim": 4,
        "cross_attention_dim": TEXT,
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
    }
    return diffusers.UNet2DConditionModel(**{**own, **changes}).eval()


def unet_xl():
    """SDXL's added conditions: pooled text and six sizes."""
    return unet_condition(
        addition_embed_type="text_time",
        addition_time_embed_dim=4,
        projection_class_embeddings_input_dim=TEXT + 6 * 4,
        cross_attention_dim=2 * TEXT,
    )


def controlnet(unet):
    torch.manual_seed(6)
    net = diffusers.ControlNetModel.from_unet(unet, conditioning_embedding_out_channels=(4, 8)).eval()
    for parameter in net.parameters():  # at first its residuals are zero
        if not parameter.any():
            torch.nn.init.normal_(parameter, std=0.1)
    return net


def sd3():
    torch.manual_seed(7)
    return diffusers.SD3Transformer2DModel(
        sample_size=8,
        patch_size=2,
        in_channels=4,
        out_channels=4,
        num_layers=2,
        attention_head_dim=8,
        num_attention_heads=2,
        joint_attention_dim=2 * TEXT,
        caption_projection_dim=16,
        pooled_projection_dim=2 * TEXT,
        pos_embed_max_size=16,
    ).eval()


def flux(guidance=True):
    torch.manual_seed(8)
    return diffusers.FluxTransformer2DModel(
        in_channels=16,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=8,
        num_attention_heads=2,
        joint_attention_dim=TEXT,
        pooled_projection_dim=TEXT,
        guidance_embeds=guidance,
        axes_dims_rope=(2, 2, 4),
    ).eval()


def dit(outputs=8):
    torch.manual_seed(9)
    net = diffusers.DiTTransformer2DModel(
        sample_size=8, num_layers=2, attention_head_dim=8, num_attention_heads=2, out_channels=outputs, num_embeds_ada_norm=1000
    )
    return net.eval()


def pixart(sizes=False):
    torch.manual_seed(10)
    return diffusers.PixArtTransformer2DModel(
        sample_size=8,
        num_layers=2,
        attention_head_dim=8,
        num_attention_heads=2,
        caption_channels=TEXT,
        cross_attention_dim=16,
        use_additional_conditions=sizes,
    ).eval()


def sana():
    torch.manual_seed(11)
    return diffusers.SanaTransformer2DModel(
        in_channels=4,
        out_channels=4,
        num_layers=2,
        num_attention_heads=2,
        attention_head_dim=8,
        num_cross_attention_heads=2,
        cross_attention_head_dim=8,
        cross_attention_dim=16,
        caption_channels=TEXT,
        sample_size=8,
    ).eval()


def ddim(**changes):
    own = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "clip_sample": False}
    return diffusers.DDIMScheduler(**{**own, "timestep_spacing": "trailing", **changes})


def flow(**changes):
    return diffusers.FlowMatchEulerDiscreteScheduler(**changes)


def parts_of_sd():
    words = {"text_encoder": clip_text(), "tokenizer": clip_tokenizer()}
    checker = {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}
    return {"vae": vae(), "unet": unet_condition(), "scheduler": ddim(), **words, **checker}


def stable_diffusion(**parts):
    return quiet(diffusers.StableDiffusionPipeline(**{**parts_of_sd(), **parts}))


def stable_diffusion_controlnet():
    own = parts_of_sd()
    return quiet(diffusers.StableDiffusionControlNetPipeline(controlnet=controlnet(own["unet"]), **own))


def stable_diffusion_xl():
    texts = {"text_encoder": clip_text(), "text_encoder_2": clip_text(True)}
    words = {"tokenizer": clip_tokenizer(), "tokenizer_2": clip_tokenizer()}
    return quiet(diffusers.StableDiffusionXLPipeline(vae=vae(), unet=unet_xl(), scheduler=ddim(), **texts, **words))


def stable_diffusion_3():
    texts = {"text_encoder": clip_text(True), "text_encoder_2": clip_text(True), "text_encoder_3": t5_text(2 * TEXT)}
    words = {"tokenizer": clip_tokenizer(), "tokenizer_2": clip_tokenizer(), "tokenizer_3": word_tokenizer()}
    own = {"vae": vae(4, 0.06), "transformer": sd3(), "scheduler": flow(shift=3.0)}
    return quiet(diffusers.StableDiffusion3Pipeline(**own, **texts, **words))


def flux_1(guidance=True):
    texts = {"text_encoder": clip_text(), "text_encoder_2": t5_text()}
    words = {"tokenizer": clip_tokenizer(), "tokenizer_2": word_tokenizer()}
    own = {"vae": vae(4, 0.1), "transformer": flux(guidance), "scheduler": flow(use_dynamic_shifting=True, shift=3.0)}
    return quiet(diffusers.FluxPipeline(**own, **texts, **words))


def pixart_sigma():
    texts = {"text_encoder": t5_text(), "tokenizer": word_tokenizer()}
    own = {"vae": vae(), "transformer": pixart(), "scheduler": ddim(beta_schedule="linear")}
    return quiet(diffusers.PixArtSigmaPipeline(**own, **texts))


def sana_1():
    texts = {"text_encoder": gemma_text(), "tokenizer": word_tokenizer()}
    own = {"vae": deep_vae(), "transformer": sana(), "scheduler": flow(shift=3.0)}
    return quiet(diffusers.SanaPipeline(**own, **texts))


def dit_xl():
    scheduler = ddim(beta_schedule="linear")
    return quiet(
        diffusers.DiTPipeline(
            transformer=dit(), vae=vae(), scheduler=scheduler, id2label={str(i): f"class {i}" for i in range(10)}
        )
    )


def quiet(pipeline):
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def close_to(ours, draw, z):
    """As near to what a pipeline draws from z as 1e-5, or as its own result moves when each value of z moves by two roundings.

    In float32 guided sampling of random networks may enlarge a last bit a hundred times, on every machine by another number.
    """
    theirs, moved = draw(z), draw(z * (1 + 2.4e-7))
    allowed = torch.clamp(1e-5 * (1 + theirs.abs()), min=2 * float((moved - theirs).abs().max()))
    assert float((ours - theirs).abs().max()) < 1e-3 * (1 + float(theirs.abs().max()))
    assert bool(((ours - theirs).abs() <= allowed).all()), f"{float(((ours - theirs).abs() / allowed).max()):.2g} times as far"
