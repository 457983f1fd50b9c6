# CUDA.jl without a device: arrays without memory, and kernels that are compiled to PTX in place of being run.
#
# Which kernels a program launches, and on which arguments, is decided by the very methods that do so on a GPU. Products
# of matrices are cuBLAS's there, which has its own kernels, and nothing here.

module NoDevice

using CUDA: CUDA, CUBLAS, CuArray, CuContext, CuDevice, CuPtr, CuStream, DenseCuArray, DeviceMemory, LLVM, Managed,
    StridedCuMatrix, StridedCuVecOrMat, StridedCuVector
using CUDA.GPUArrays: DataRef
using CUDA.GPUCompiler: GPUCompiler, CompilerConfig, CompilerJob, JuliaContext, PTXCompilerTarget, methodinstance
using PyNODE: PyNODE

# ---- the compiler -----------------------------------------------------------------------------------------------

"An A100's."
const CAPABILITY, ISA = v"8.0", v"7.5"

"Kernels, as functions and the types of their arguments, and their code."
const KERNELS = Dict{Any,String}()

# Mathematical functions of CUDA's library, `libdevice`, stay open where it is not installed.
const HAS_LIBRARY = try
    isfile(CUDA.CUDA_Compiler.libdevice)
catch
    false
end
if !HAS_LIBRARY
    @eval GPUCompiler.link_libraries!(@nospecialize(job::CUDA.AnyCUDAJob), mod::LLVM.Module) = nothing
    @eval GPUCompiler.isintrinsic(@nospecialize(job::CUDA.AnyCUDAJob), name::String) =
        startswith(name, r"__nv_|__nvvm_reflect|cuda") ||
        invoke(GPUCompiler.isintrinsic, Tuple{CompilerJob{PTXCompilerTarget},String}, job, name)
end

"""
    ptx(f, types)

The code of a kernel. What a GPU cannot do is an error: GPUCompiler's `InvalidIRError` for calls of functions that are not
known before they run, or of Julia's runtime; an `ErrorException` for memory from the heap, which CUDA.jl would allow.
"""
function ptx(f, types; always_inline = false, minthreads = nothing, maxthreads = nothing, name = nothing)
    target = PTXCompilerTarget(; cap = CAPABILITY, ptx = ISA, minthreads, maxthreads)
    params = CUDA.CUDACompilerParams(; cap = CAPABILITY, ptx = ISA)
    config = CompilerConfig(target, params; kernel = true, name, always_inline)
    job = CompilerJob(methodinstance(typeof(f), Base.to_tuple_type(types)), config)
    code = JuliaContext(_ -> String(first(GPUCompiler.compile(:asm, job))))
    occursin(r"\bmalloc\b", code) && error("the kernel $f allocates memory, for arguments $types")
    return code
end

"A kernel as CUDA.jl launches it, which does nothing."
struct Compiled
    fun::Nothing
end
(::Compiled)(args...; options...) = nothing

function CUDA.cufunction(f::F, types::TT = Tuple{}; options...) where {F,TT}
    get!(() -> ptx(f, types; options...), KERNELS, (f, types, values(options)))
    return Compiled(nothing)
end
CUDA.launch_configuration(::Nothing; options...) = (blocks = 80, threads = 32)

# ---- the device -------------------------------------------------------------------------------------------------

const DEVICE = reinterpret(CuDevice, Int32(0))
const CONTEXT = reinterpret(CuContext, (UInt(1), UInt64(1)))
const STREAM = ccall(:jl_new_struct_uninit, Any, (Any,), CuStream)::CuStream

"For reductions CUDA.jl has a kernel where results are fewer than a device's threads, and another where they are not."
const PROCESSORS = Ref(1000)

CUDA.device() = DEVICE
CUDA.context() = CONTEXT
CUDA.stream() = STREAM
CUDA.warpsize(::CuDevice) = 32
function CUDA.attribute(::CuDevice, what::CUDA.CUdevice_attribute)
    return what == CUDA.DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT ? PROCESSORS[] : 1024
end

# ---- arrays -----------------------------------------------------------------------------------------------------

"Where the next array lies; nothing is ever read there."
const ADDRESS = Ref(UInt(4096))

function (::Type{CuArray{T,N,M}})(::UndefInitializer, dims::Dims{N}) where {T,N,M}
    bytes = prod(dims) * sizeof(T)
    memory = DeviceMemory(DEVICE, CONTEXT, CuPtr{Cvoid}(ADDRESS[]), bytes, false)
    ADDRESS[] += 512 * cld(bytes + 1, 512)
    return CuArray{T,N}(DataRef(Returns(nothing), Managed(memory; stream = STREAM)), dims)
end

Base.convert(::Type{CuPtr{T}}, x::Managed{DeviceMemory}) where {T} = reinterpret(CuPtr{T}, x.mem.ptr)
Base.fill!(x::DenseCuArray{T}, value) where {T<:CUDA.MemsetCompatTypes} = x
Base.unsafe_copyto!(to::DenseCuArray{T}, i, from::Array{T}, j, n) where {T} = to
Base.unsafe_copyto!(to::DenseCuArray{T}, i, from::DenseCuArray{T}, j, n) where {T} = to

"What comes from the device is zero, or true, which is the answer to whether all places exist that are read."
function Base.unsafe_copyto!(to::Array{T}, i, from::DenseCuArray{T}, j, n) where {T}
    fill!(view(to, i:(i + n - 1)), T === Bool ? true : zero(T))
    return to
end

# ---- cuBLAS -----------------------------------------------------------------------------------------------------

CUBLAS.gemmExComputeType(A, B, C, m, k, n) = nothing
for T in (Float32, Float64)
    M, V, A = StridedCuVecOrMat{T}, StridedCuVector{T}, AbstractArray{T,3}
    @eval begin
        CUBLAS.gemm!(ta::Char, tb::Char, alpha, a::$M, b::$M, beta, c::$M) = c
        CUBLAS.gemv!(ta::Char, alpha, a::$(StridedCuMatrix{T}), x::$V, beta, y::$V) = y
        CUBLAS.gemm_strided_batched!(ta::Char, tb::Char, alpha, a::$A, b::$A, beta, c::$A) = c
    end
end

# ---- graphs -----------------------------------------------------------------------------------------------------

"What kind of kernel: a broadcast, a reduction, …"
kind(f) = replace(string(nameof(f)), r"#\d+#?|^gpu_|#" => "")
kinds() = sort!([(k, count(==(k), kind.(first.(keys(KERNELS))))) for k in unique(kind.(first.(keys(KERNELS))))])

"Run a function for devices with few threads and with many."
function launch(f)
    for processors in (1000, 0)
        PROCESSORS[] = processors
        f()
    end
end

"""
    compile_field(graph, batch, T = Float64)

Compile the kernels of all programs of a field; returns how many are new.
"""
function compile_field(g::PyNODE.Graph, batch::Int, ::Type{T} = Float64) where {T}
    known = length(KERNELS)
    k = PyNODE.Kernel{T}(g)
    w = PyNODE.Workspace(k, batch, CuArray{T}(undef, 0))
    residuals = PyNODE.new_residuals(w)
    launch() do
        for program in (k.prologue, k.value, k.vjp, k.record, k.replay, k.vjp_state, k.vjp_theta)
            PyNODE.bind(w, program; residuals)(T(0.5))
        end
    end
    return length(KERNELS) - known
end
compile_field(text::String, batch::Int) = compile_field(PyNODE.Graph(text), batch)

end
