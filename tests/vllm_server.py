"""``vllm serve`` for tiny models on a processor: ``python tests/vllm_server.py FOLDER --port ...``."""

from __future__ import annotations

import os
import sys

ARGUMENTS = [
    *("--served-model-name", "base", "--dtype", "float32", "--max-model-len", "128", "--max-num-seqs", "16"),
    *("--enable-lora", "--max-lora-rank", "8", "--enforce-eager", "--distributed-executor-backend", "uni"),
    # With the head among them vLLM 0.32 computes log-likelihoods of prompts wrongly, or ends on a processor.
    "--lora-target-modules",
    *("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"),
]

if __name__ == "__main__":
    for name, value in {
        "VLLM_ALLOW_RUNTIME_LORA_UPDATING": "1",
        "VLLM_CPU_KVCACHE_SPACE": "1",
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        "VLLM_NO_USAGE_STATS": "1",
        "VLLM_WORKER_MULTIPROCESSING_METHOD": "fork",
    }.items():
        os.environ.setdefault(name, value)
    from vllm.entrypoints.cli.main import main
    from vllm_models import know_architectures

    know_architectures()
    folder, *more = sys.argv[1:]
    sys.argv = ["vllm", "serve", folder, *ARGUMENTS, *more]
    main()
