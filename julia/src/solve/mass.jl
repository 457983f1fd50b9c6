# Mass matrices: M dz/dt = f(t, z) with M constant, possibly singular, so that some equations are algebraic.

"""
A mass matrix of the numbers of one sample, in the order of its state tensors.

# Fields
- `matrix`: M, n × n.
- `left`, `right`: orthonormal columns that span the null spaces of Mᵀ and of M.
"""
struct Mass
    matrix::Matrix{Float64}
    left::Matrix{Float64}
    right::Matrix{Float64}
end

"The one that the next call of Python's takes, if that says so."
const MASS = Ref{Union{Nothing,Mass}}(nothing)

"""
    set_mass(n, matrix, left, right)

As Python passes it: the numbers of each matrix, which has n rows, column by column.
"""
function set_mass(n, matrix, left, right)
    columns(x) = reshape(Float64[Float64(y) for y in x], Int(n), :)
    MASS[] = Mass(columns(matrix), columns(left), columns(right))
    return
end

"The matrix of a whole state: that of a sample for each."
function of_state(f::TracedField{T}, matrix::AbstractMatrix) where {T}
    whole = zeros(T, length(f.u), length(f.u))
    foreach(entries -> whole[entries, entries] .= matrix, f.samples)
    return whole
end

"An in-place function whose type nobody sees, so that a solver is compiled once for the field and for its adjoint."
struct Hidden
    f::Any
end

(h::Hidden)(out, u, p, t) = (h.f(out, u, p, t); nothing)

"""
    mass_function(field, f, jac, tgrad, matrix, left)

An in-place `ODEFunction` of a mass matrix with its Jacobian and its derivative in t, for the states of a field.

Where the algebraic equations are not rows of their own, as they are in a matrix with rows of zeros, they are combined so:
short steps would drown them in the rounding of the others, which are divided by the step.
"""
function mass_function(field::TracedField, f, jac, tgrad, matrix, left)
    rows = nothing
    if count(iszero, eachrow(matrix)) < size(left, 2)
        rows = [transpose(nullspace(transpose(left))); transpose(left)]
        matrix = rows * matrix
        matrix[(end - size(left, 2) + 1):end, :] .= 0
    end
    function hidden(g)
        rows === nothing && return Hidden(g)
        return Hidden((out, u, p, t) -> (g(out, u, p, t); combine_rows!(out, rows, field.samples)))
    end
    mass_matrix = of_state(field, matrix)
    return ODEFunction{true,FullSpecialize}(hidden(f); jac = hidden(jac), tgrad = hidden(tgrad), mass_matrix)
end

function combine_rows!(x, rows, samples)
    foreach(entries -> x[entries, :] .= rows * x[entries, :], samples)
    return
end

mass_function(f::TracedField, m::Mass) =
    mass_function(f, f, Jacobian(f), TimeGradient(f), m.matrix, m.left)
