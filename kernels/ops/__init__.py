"""Kernels: one operation a file, a torch reference and its back-ends, listed in one table."""

if __name__ != "autocomp.kernels":
    raise ImportError("this folder is the package autocomp.kernels; import it by that name")

KERNELS = {
    "pack_bits": "autocomp.kernels.bits:pack_bits",
    "unpack_bits": "autocomp.kernels.bits:unpack_bits",
    "dequantize": "autocomp.kernels.dequantize:dequantize",
    "gather_rows": "autocomp.kernels.gather_rows:gather_rows",
    "dense_matmul": "autocomp.kernels.dense_matmul:dense_matmul",
    "weight_only_matmul": "autocomp.kernels.weight_only_matmul:weight_only_matmul",
    "int4_tile_matmul": "autocomp.kernels.int4_tile_matmul:int4_tile_matmul",
    "int8_matmul": "autocomp.kernels.int8_matmul:int8_matmul",
    "quantize_activations": "autocomp.kernels.quantize_activations:quantize_activations",
    "fp8_matmul": "autocomp.kernels.fp8_matmul:fp8_matmul",
    "fp4_matmul": "autocomp.kernels.fp4_matmul:fp4_matmul",
    "hadamard": "autocomp.kernels.hadamard:hadamard",
    "bitmask_matmul": "autocomp.kernels.bitmask_matmul:bitmask_matmul",
    "nm_matmul": "autocomp.kernels.nm_matmul:nm_matmul",
    "low_rank_matmul": "autocomp.kernels.low_rank_matmul:low_rank_matmul",
    "codebook_matmul": "autocomp.kernels.codebook_matmul:codebook_matmul",
    "dense_sparse_matmul": "autocomp.kernels.dense_sparse_matmul:dense_sparse_matmul",
    "int8_outlier_matmul": "autocomp.kernels.int8_outlier_matmul:int8_outlier_matmul",
    "kv_attention": "autocomp.kernels.kv_attention:kv_attention",
    "lut_gemm": "autocomp.kernels.lut_gemm:lut_gemm",
}
