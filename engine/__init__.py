import os

# XLA's threaded sums on CPUs depend on the threads' timing in their last bits, about once in sixty
# gradients; a resumed run must equal an uninterrupted one. The solve, nine tenths of the work, has
# threads of its own (engine/multigrid/native/solver.cc).
if "xla_cpu_multi_thread_eigen" not in os.environ.get("XLA_FLAGS", ""):
    os.environ["XLA_FLAGS"] = (
        f"{os.environ.get('XLA_FLAGS', '')} --xla_cpu_multi_thread_eigen=false".strip()
    )
