"""Kernels: one operation a file, a torch reference each, listed in one table."""

if __name__ != "autocomp.kernels":
    raise ImportError("this folder is the package autocomp.kernels; import it by that name")

KERNELS = {
    "pack_bits": "autocomp.kernels.bits:pack_bits",
    "unpack_bits": "autocomp.kernels.bits:unpack_bits",
    "lut_gemm": "autocomp.kernels.lut_gemm:lut_gemm",
}
