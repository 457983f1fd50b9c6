# The kernels that lowering makes for GPUs are compiled for one, to PTX, by CUDA.jl and GPUCompiler; there need be none.
#
# `tests/field/test_ptx.py` does the same with each kind of field that PyTorch traces.

if Base.identify_package("CUDA") === nothing
    @info "Kernels are not compiled for GPUs: the environment has no CUDA.jl."
else
    using CUDA: CUDA, CuArray
    if CUDA.functional()
        @info "Kernels are not compiled to PTX without a GPU: there is one, and CUDA.jl is not to lose it."
    else
        include("nodevice.jl")
        include("kernels.jl")
    end
end
