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

"Explicit Runge–Kutta methods: those that the discrete adjoint can transpose."
const EXPLICIT = sort!(collect(keys(SOLVERS)))

"Solvers whose interpolant needs no stages beyond those of the step."
const INTERPOLATED = ("Tsit5", "DP5", "BS3")

"Solvers for stiff fields that solve their linear systems by GMRES, from products with the Jacobian alone."
const MATRIX_FREE = ("KenCarp4Krylov", "FBDFKrylov")

"Solvers for stiff fields, which the extension `PyNODEStiffExt` adds to `SOLVERS`."
const STIFF = ("Rosenbrock23", "Rodas5P", "TRBDF2", "KenCarp4", "FBDF", "QNDF", "AutoStiff", MATRIX_FREE...)

isstiff(name) = name in STIFF
ismatrixfree(name) = name in MATRIX_FREE

const STIFF_PACKAGES = (
    Base.PkgId(Base.UUID("43230ef6-c299-4910-a778-202eb28ce4ce"), "OrdinaryDiffEqRosenbrock"),
    Base.PkgId(Base.UUID("2d112036-d095-4a1e-ab9a-08536f3ecdbf"), "OrdinaryDiffEqSDIRK"),
    Base.PkgId(Base.UUID("6ad6398a-0878-4a85-9266-38940aa047c8"), "OrdinaryDiffEqBDF"),
)

const SENSITIVITY_PACKAGES =
    (Base.PkgId(Base.UUID("1ed8b502-d754-442c-8d5d-10ac956f44a1"), "SciMLSensitivity"),)

# Verner's methods compute the stages of their interpolants when asked to interpolate; the adjoints, which read the
# solution's stages, need them there from the start.
const LAZY = ("Vern6", "Vern7", "Vern8", "Vern9")

"""
    algorithm(name; dense = false)

The algorithm of a name; with `dense`, its steps come with all that interpolation needs. The packages of the implicit
solvers are loaded when the first of them is asked for.
"""
function algorithm(name::AbstractString; dense::Bool = false)
    isstiff(name) && load(STIFF_PACKAGES)
    haskey(SOLVERS, name) ||
        throw(ArgumentError("unknown solver \"$name\": expected one of $(join(sort!(collect(keys(SOLVERS))), ", "))"))
    dense && name in LAZY && return SOLVERS[name](; lazy = false)
    return Base.invokelatest(SOLVERS[name])  # an extension may just have brought it
end
