module PyNODEStiffExt

using ADTypes: AutoFiniteDiff
using LinearAlgebra: ColumnNorm, UniformScaling, qr
using LinearSolve: LinearSolve, KrylovJL_GMRES, LinearCache, OperatorAssumptions, SciMLLinearSolveAlgorithm
using OrdinaryDiffEqBDF: FBDF, FBDFCache, QNDF
using OrdinaryDiffEqCore: OrdinaryDiffEqCore
using OrdinaryDiffEqRosenbrock: Rodas5P, Rosenbrock23, Rosenbrock23Cache, RosenbrockCache
using OrdinaryDiffEqSDIRK: KenCarp3, KenCarp3Cache, KenCarp4, KenCarp4Cache, KenCarp5, KenCarp5Cache, NLNewton, TRBDF2, TRBDF2Cache
using OrdinaryDiffEqTsit5: AutoTsit5
using PrecompileTools: @compile_workload
using PyNODE: PyNODE, @interpolated, Blocks, Elimination, ExactClock, SOLVERS, SPLIT_SOLVERS
using PyNODE: factorise!, forget_samples, look_between!, own_vectors, sample_run, size_of, solve_blocks!, subtract_identity!
using SciMLBase: SciMLBase, ODEFunction, ODEProblem, ReturnCode, build_linear_solution, init, solve!, step!

include("backwards.jl")
include("estimate.jl")
include("steps.jl")

# ---- solvers --------------------------------------------------------------------------------------------------

# The field brings its Jacobian and time gradient, and its kernels take plain numbers only: no dual numbers.
function __init__()
    for (name, solver) in (
        "Rosenbrock23" => Rosenbrock23,
        "Rodas5P" => Rodas5P,
        "FBDF" => FBDF,
        "QNDF" => QNDF,
    )
        SOLVERS[name] = () -> solver(; autodiff = AutoFiniteDiff())
    end
    smooth_est = SMOOTHING !== :unknown
    for (name, solver) in ("TRBDF2" => TRBDF2, "KenCarp3" => KenCarp3, "KenCarp4" => KenCarp4, "KenCarp5" => KenCarp5)
        SOLVERS[name] = () -> solver(; autodiff = AutoFiniteDiff(), smooth_est)
    end
    # Errors of a split field's parts do not make up for one another. So each step has a Jacobian of its own, since Newton's
    # method, once exact, is taken to be so with an earlier one; and the estimate of a step's error is not smoothed by the
    # stiff part, which the other's error is not.
    nlsolve = NLNewton(; fast_convergence_cutoff = 0)
    for (name, solver) in ("KenCarp3" => KenCarp3, "KenCarp4" => KenCarp4, "KenCarp5" => KenCarp5)
        SPLIT_SOLVERS[name] = () -> solver(; autodiff = AutoFiniteDiff(), nlsolve, smooth_est = false)
    end
    SOLVERS["KenCarp4Krylov"] = () -> KenCarp4(; autodiff = AutoFiniteDiff(), linsolve = KrylovJL_GMRES(), smooth_est)
    SOLVERS["FBDFKrylov"] = () -> FBDF(; autodiff = AutoFiniteDiff(), linsolve = KrylovJL_GMRES())
    SOLVERS["AutoStiff"] = () -> AutoTsit5(Rodas5P(; autodiff = AutoFiniteDiff()))
    return
end

# ---- Jacobians on a device ------------------------------------------------------------------------------------

"LU factorisation of each block of the matrix."
struct BlockLU <: SciMLLinearSolveAlgorithm end

LinearSolve.needs_concrete_A(::BlockLU) = true
LinearSolve.defaultalg(::Blocks, b, ::OperatorAssumptions{Bool}) = BlockLU()
LinearSolve.init_cacheval(::BlockLU, A::Blocks, _...) = Elimination(A)

function SciMLBase.solve!(cache::LinearCache, alg::BlockLU; _...)
    if cache.isfresh
        factorise!(cache.A, cache.cacheval)
        cache.isfresh = false
    end
    solve_blocks!(cache.u, cache.A, cache.cacheval, cache.b)
    return build_linear_solution(alg, cache.u, nothing, cache; retcode = ReturnCode.Success)
end

# What the packages of stiff solvers have in common.
const Differentiation = Base.root_module(
    Base.PkgId(Base.UUID("4302a76b-040a-498a-8c04-15b101fed76b"), "OrdinaryDiffEqDifferentiation")
)

function Differentiation.jacobian2W!(W::Blocks, mass::UniformScaling, dtgamma::Number, J::Blocks)::Nothing
    return subtract_identity!(W, J, eltype(J)(mass.λ * inv(dtgamma)))
end

@compile_workload begin
    __init__()
    for dtype in ("float32", "float64"), solver in ("Rodas5P", "FBDF")
        sample_run(dtype, solver, nothing)
    end
    forget_samples()
end

end
