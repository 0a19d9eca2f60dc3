"""How much work a job is: FLOPs and bytes, counted from shapes and from the rows' real lengths.

    forward FLOPs = 2 · weights of the linears · tokens  +  2 t (t + 1) d a layer and row
    AdamW moves 28 bytes a parameter: it reads θ, g, m, v and writes θ, m, v, 4 bytes each

The second term is attention, Q Kᵀ and its product with V, 2 d FLOPs each for a key that a query
sees. Every layer is counted at every real token, but where only the logits at the last one are
asked for: there the last layer's keys and values alone. Padding, the future and moved activations
are not counted. A step of training is three forwards (backward is one for inputs, one for weights).
Normalisation, GELU, softmax and embeddings are left out, as torch's own counter does.
"""

from dataclasses import dataclass

from benchmarks.jobs import Workload

FLOAT = 4  # bytes
ADAMW_BYTES = 7 * FLOAT


@dataclass(frozen=True)
class Phase:
    """Work whose arithmetic and traffic can overlap; phases follow each other."""

    flops: float = 0.0
    bytes: float = 0.0

    def seconds(self, rate: float, bandwidth: float) -> float:
        """The least time on a machine of so many FLOP/s and bytes/s."""
        return max(self.flops / rate, self.bytes / bandwidth)


def layer_weights(config) -> int:
    """Elements of the matrices of one layer: query, key, value, dense, and the perceptron's two."""
    d = config.hidden_size
    return 4 * d * d + 2 * d * config.intermediate_size


def matrix_weights(config) -> int:
    return config.num_hidden_layers * layer_weights(config)


def parameters(config) -> int:
    """All of a GPT-2: embeddings, layers with their biases and norms, the last norm."""
    d = config.hidden_size
    biases_and_norms = 5 * d + config.intermediate_size + 4 * d
    embeddings = (config.vocab_size + config.max_position_embeddings) * d
    layers = config.num_hidden_layers * (layer_weights(config) + biases_and_norms)
    return embeddings + layers + 2 * d


def forward_flops(config, lengths, *, causal: bool = True, last_only: bool = False) -> int:
    """FLOPs of the layers for rows of these lengths.

    causal False counts hidden keys too; last_only leaves out what the last layer would do for all
    but the last positions, save keys and values.
    """
    d = config.hidden_size
    keys = sum(t * (t + 1) // 2 if causal else t * t for t in lengths)
    whole = 2 * matrix_weights(config) * sum(lengths) + config.num_hidden_layers * 4 * keys * d
    if not last_only:
        return whole
    others, seen = sum(lengths) - len(lengths), keys - sum(lengths)
    return whole - 2 * (layer_weights(config) - 2 * d * d) * others - 4 * d * seen


def output_flops(config, positions: int, classes: int) -> int:
    """FLOPs of the last linear at so many positions."""
    return 2 * config.hidden_size * classes * positions


def phases(work: Workload) -> list[Phase]:
    """A job's work in the phases that must follow each other."""
    config, kind = work.config, work.job.kind
    if kind == "step":
        return [Phase(bytes=ADAMW_BYTES * parameters(config))]
    lengths = [len(ids) for ids in work.tokens(work.rows)]
    if kind == "decode":
        return decoding(config, lengths, work.settings.new_tokens)
    every_position = work.job.task == "sonnet"
    positions = sum(lengths) if every_position else len(lengths)
    output_weights = config.hidden_size * work.classes
    flops = forward_flops(config, lengths, last_only=not every_position)
    flops += output_flops(config, positions, work.classes)
    weights = FLOAT * (matrix_weights(config) + output_weights)
    if kind == "train_head":  # a frozen network need not read a row twice
        dev_lengths = [len(ids) for ids in work.tokens(work.dev)]
        dev = forward_flops(config, dev_lengths, last_only=True)
        return [Phase(flops=flops + dev, bytes=weights)]
    if kind == "evaluate":
        return [Phase(flops=flops, bytes=work.steps * weights)]
    trained = parameters(config)
    if work.job.task not in ("paraphrase", "sonnet"):
        trained += output_weights
    return [
        # weights are read forward and backward, and their gradients written
        Phase(flops=3 * flops, bytes=work.steps * 3 * weights),
        Phase(bytes=work.steps * ADAMW_BYTES * trained),
    ]


def decoding(config, lengths, new_tokens: int) -> list[Phase]:
    """Prompts are read at once, each later token alone; a batch reads the weights together."""
    d, layers, rows = config.hidden_size, config.num_hidden_layers, len(lengths)
    output = output_flops(config, rows, config.vocab_size)
    weights = FLOAT * (matrix_weights(config) + d * config.vocab_size)
    later = range(1, new_tokens)
    keys = sum(t + i for t in lengths for i in later)  # cached ones that the later tokens see
    flops = len(later) * (2 * matrix_weights(config) * rows + output) + layers * 4 * keys * d
    cache = FLOAT * 2 * layers * d * keys
    return [
        Phase(flops=forward_flops(config, lengths) + output, bytes=weights),
        Phase(flops=flops, bytes=len(later) * weights + cache),
    ]


def limit_seconds(phases: list[Phase], rate: float, bandwidth: float) -> float:
    """The least time that a machine of these figures takes for the phases, one after the other."""
    return sum(phase.seconds(rate, bandwidth) for phase in phases)
