# The solvers that `pynode.solve` names.

"Solver of each name, made anew for each solve."
const SOLVERS = Dict{String,Any}(
    "Tsit5" => Tsit5,
    "DP5" => DP5,
    "BS3" => BS3,
    "Vern6" => Vern6,
    "Vern7" => Vern7,
    "Vern8" => Vern8,
    "Vern9" => Vern9,
    "DP8" => DP8,
    "Euler" => Euler,
    "Heun" => Heun,
    "Midpoint" => Midpoint,
    "RK4" => RK4,
)

"Of methods that take a split field, those that do, made likewise."
const SPLIT_SOLVERS = Dict{String,Any}()

"Explicit Runge–Kutta methods: those that the discrete adjoint can transpose."
const EXPLICIT = sort!(collect(keys(SOLVERS)))

"Further ones, of packages whose extensions add them to `SOLVERS`, with their tableaus."
const STRONG_STABILITY = ("SSPRK33", "SSPRK43", "SSPRK104")
const LOW_STORAGE = ("RDPK3SpFSAL35", "RDPK3SpFSAL49")

"Explicit methods that are no Runge–Kutta methods of fixed stages: stabilised ones, and a multistep one."
const STABILIZED = ("ROCK2", "ROCK4")
const ADAMS = ("VCABM",)

"Solvers whose interpolant needs no stages beyond those of the step."
const INTERPOLATED = ("Tsit5", "DP5", "BS3")

"Solvers for stiff fields that solve their linear systems by GMRES, from products with the Jacobian alone."
const MATRIX_FREE = ("KenCarp4Krylov", "FBDFKrylov")

"Solvers for stiff fields, which the extension `PyNODEStiffExt` adds to `SOLVERS`."
const STIFF = ("Rosenbrock23", "Rodas5P", "TRBDF2", "KenCarp3", "KenCarp4", "KenCarp5", "FBDF", "QNDF", "AutoStiff", MATRIX_FREE...)

isstiff(name) = name in STIFF
"Whether the steps are SciML's own business: there is no discrete adjoint of them."
isopaque(name) = isstiff(name) || name in STABILIZED || name in ADAMS
ismatrixfree(name) = name in MATRIX_FREE

const STIFF_PACKAGES = (
    Base.PkgId(Base.UUID("43230ef6-c299-4910-a778-202eb28ce4ce"), "OrdinaryDiffEqRosenbrock"),
    Base.PkgId(Base.UUID("2d112036-d095-4a1e-ab9a-08536f3ecdbf"), "OrdinaryDiffEqSDIRK"),
    Base.PkgId(Base.UUID("6ad6398a-0878-4a85-9266-38940aa047c8"), "OrdinaryDiffEqBDF"),
)

package(name, uuid) = (Base.PkgId(Base.UUID(uuid), "OrdinaryDiffEq" * name),)

"The packages of a solver that are loaded when it is asked for."
function packages_of(name)
    isstiff(name) && return STIFF_PACKAGES
    name in STRONG_STABILITY && return package("SSPRK", "669c94d9-1f4b-4b64-b377-1aa079aa2388")
    name in LOW_STORAGE && return package("LowStorageRK", "b0944070-b475-4768-8dec-fb6eb410534d")
    name in STABILIZED && return package("StabilizedRK", "358294b1-0aab-51c3-aafe-ad5ab194a2ad")
    name in ADAMS && return package("AdamsBashforthMoulton", "89bda076-bce5-4f1c-845f-551c83cdda9a")
    return ()
end

const SENSITIVITY_PACKAGES =
    (Base.PkgId(Base.UUID("1ed8b502-d754-442c-8d5d-10ac956f44a1"), "SciMLSensitivity"),)

# Verner's methods compute the stages of their interpolants when asked to interpolate; the adjoints, which read the
# solution's stages, need them there from the start.
const LAZY = ("Vern6", "Vern7", "Vern8", "Vern9")

"""
    algorithm(name; dense = false, split = false, threads = 1)

The algorithm of a name; with `dense`, its steps come with all that interpolation needs; with `split`, for a split field.
The sums of explicit Runge–Kutta methods are shared by so many threads.
The packages of solvers that an extension adds are loaded when the first of them is asked for.
"""
function algorithm(name::AbstractString; dense::Bool = false, split::Bool = false, threads::Int = 1)
    load(packages_of(name))
    split && return Base.invokelatest(SPLIT_SOLVERS[name])
    haskey(SOLVERS, name) ||
        throw(ArgumentError("unknown solver \"$name\": expected one of $(join(sort!(collect(keys(SOLVERS))), ", "))"))
    name in EXPLICIT || return Base.invokelatest(SOLVERS[name])  # an extension may just have brought it
    return SOLVERS[name](; (name == "Euler" ? (;) : team(threads))..., (dense && name in LAZY ? (; lazy = false) : (;))...)
end
