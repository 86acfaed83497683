"""Arguments of lm-eval that mean nothing for a model that is merged in memory, and what to use instead."""

from __future__ import annotations

from fitness._lm_eval.image_arguments import IMAGE_ARGUMENTS

_MODELS = ("the models that are merged are the pool's", "set pool.models={name: folder or org/model}")
_PLACED = ("the evaluator places the model", "set evaluator.device: cpu, cuda:1, or spread for layers over all GPUs")
_QUANTISED = ("quantised weights cannot be merged", "name the full-precision checkpoint in pool.models")
_SEEDS = ("it is lm-eval's default, in every search", "leave it out; fitness.fewshot_seed chooses the examples")
_BUILT_ONCE = ("prompts are built once, and responses change with the weights", "leave it out")
_ADAPTERS = ("adapters belong to models", "set pool.models={name: org/model+org/adapter}")
_TOKENIZER = ("the tokenizer is that of a model of the pool", "set pool.tokenizer_from=NAME")
_SERVER = {
    name: ("evaluator.engine=server has keys of its own", f"set evaluator.server.{name}")
    for name in ("url", "concurrency", "retries", "timeout", "key_from")
}

FOREIGN_KEYS = {
    # of HFLM, which --model_args go to
    "pretrained": _MODELS,
    "backend": ("it follows from the model: causal, or seq2seq for an encoder-decoder", "leave it out"),
    "revision": ("a model's commit stands behind its name", "set pool.models={name: org/model@COMMIT}"),
    "subfolder": ("a model is a folder of its own", "set pool.models={name: folder/subfolder}"),
    "tokenizer": _TOKENIZER,
    "use_fast_tokenizer": ("the tokenizer is the one that transformers opens by itself", "leave it out"),
    "trust_remote_code": ("models are opened by the pool", "set pool.trust_remote_code=true"),
    "device": _PLACED,
    "parallelize": _PLACED,
    "tp_plan": _PLACED,
    "max_memory_per_gpu": _PLACED,
    "max_cpu_memory": _PLACED,
    "offload_folder": _PLACED,
    "dtype": ("models are merged and scored in one dtype", "set pool.dtype=bfloat16"),
    "max_batch_size": ("a batch size that is probed changes scores between candidates", "set fitness.batch_size=16"),
    "peft": _ADAPTERS,
    "delta": ("models are read whole", "add the differences to their base, save it, and name that in pool.models"),
    "autogptq": _QUANTISED,
    "gptqmodel": _QUANTISED,
    "gguf_file": _QUANTISED,
    "load_in_8bit": ("merged weights are quantised by who evaluates them", "set evaluator.quantise=int8"),
    "load_in_4bit": ("merged weights are quantised by who evaluates them", "set evaluator.quantise=nf4"),
    "quantization_config": _QUANTISED,
    "attn_implementation": ("models run with the attention that transformers chooses for them", "leave it out"),
    # of lm-eval's vLLM model
    "tokenizer_mode": _TOKENIZER,
    "tokenizer_revision": _TOKENIZER,
    "quantization": ("merged weights are quantised by who evaluates them", "set evaluator.quantise=int8"),
    "tensor_parallel_size": ("a worker has one engine on all of its GPUs", "set evaluator.gpus_per_worker=2"),
    "data_parallel_size": ("every worker has an engine", "set evaluator=ray evaluator.workers=2"),
    "lora_local_path": _ADAPTERS,
    "truncation_side": ("prompts are cut on the left, as lm-eval does", "leave it out"),
    **{
        name: ("it is an argument of vLLM's engine", f"set evaluator.engine_args.{name}")
        for name in ("max_model_len", "max_lora_rank", "max_num_seqs", "gpu_memory_utilization", "enforce_eager")
    },
    # of lm-eval's model of servers
    "base_url": _SERVER["url"],
    "num_concurrent": _SERVER["concurrency"],
    "max_retries": _SERVER["retries"],
    "timeout": _SERVER["timeout"],
    "auth_token": _SERVER["key_from"],
    "header": _SERVER["key_from"],
    "truncate": ("prompts are cut at the server's positions", "set fitness.max_length"),
    "custom_prefix_token_id": ("it has another name here", "set fitness.prefix_token_id"),
    "eos_string": ("texts end at the tokenizer's EOS", "leave it out"),
    # of lm-eval's hf-multimodal
    **{name: ("images have a key of their own", f"set fitness.image_args.{name}") for name in IMAGE_ARGUMENTS},
    **dict.fromkeys(("tokenizer_backend", "tokenized_requests"), ("a server is sent tokens", "leave it out")),
    **dict.fromkeys(
        ("verify_certificate", "ca_cert_path"),
        ("a server with https has a certificate that is known", "leave it out"),
    ),
    # of simple_evaluate and the command
    "model": _MODELS,
    "task_manager": ("tasks are found by name, path and folder", "set fitness.tasks and fitness.include_path"),
    "samples": ("documents are the first ones of a task", "set fitness.limit, or filter them in the task's YAML"),
    "fewshot_random_seed": ("it has a shorter name here", "set fitness.fewshot_seed=1234"),
    "seed": _SEEDS,
    "random_seed": _SEEDS,
    "numpy_random_seed": _SEEDS,
    "torch_random_seed": _SEEDS,
    "use_cache": _BUILT_ONCE,
    "cache_requests": _BUILT_ONCE,
    "rewrite_requests_cache": _BUILT_ONCE,
    "delete_requests_cache": _BUILT_ONCE,
    "bootstrap_iters": ("reports compare models item by item, without standard errors", "leave it out"),
    "check_integrity": ("tasks are checked before every search", "run `evomerge validate`"),
    "write_out": ("prompts are kept for the report", "run `evomerge report RUN`"),
    "log_samples": ("responses are kept by request", "run `evomerge evaluate MODEL --log-samples FOLDER`"),
    "evaluation_tracker": ("a run is its own record", "set trackers, to follow it elsewhere"),
    "verbosity": ("lm-eval says nothing but its errors", "leave it out"),
    "max_gen_toks": ("it is an argument of generation", "set fitness.gen_kwargs.max_gen_toks=64"),
    "output_path": ("a run has its folder", "set run_dir, or keep what `evomerge evaluate --json` prints"),
    "predict_only": ("a search needs scores", "leave it out"),
    "confirm_run_unsafe_code": ("tasks that run what a model wrote are refused", "choose other tasks"),
    "metadata": ("what a task's data need stands in the task", "write metadata: {...} in the task's YAML"),
}
"""Argument -> why it is no key here, and what to do. Every one is in docs/lm_eval.md."""
