# A field as SciML's `ODEFunction`, with the derivatives that a solver of stiff fields asks for.

"""
The state's Jacobian from vector-Jacobian products: row by row, or, where no sample depends on another, a row of every
sample at once. Where the operations do not tell, each Jacobian is tried as such.
"""
struct Jacobian{T,V<:AbstractVector{T}}
    field::TracedField{T,V}
    v::V
    apart::Bool  # whether no sample depends on another, whatever the numbers
end

Jacobian(f::TracedField) = Jacobian(f, fill!(similar(f.dz), 0), samples_apart(f))

function (j::Jacobian)(J, u, p, t)
    rebind!(j.field, p)
    settle!(j.field.tape.workspace, j.field, u, t)
    length(j.field.samples) > 1 && (blocks!(J, j, u, t); j.apart || iswhole(J, j, u, t)) || rows!(J, j, u, t)
    return nothing
end

function rows!(J, j::Jacobian, u, t)
    for i in eachindex(j.v)
        fill!(j.v, 0)
        fill!(view(j.v, i:i), 1)
        row!(j.field.tape.workspace, j.field, j.v, u, t)
        copyto!(view(J, i, :), j.field.dz)
    end
    return
end

function blocks!(J, j::Jacobian, u, t)
    fill!(J, 0)
    for i in eachindex(first(j.field.samples))
        fill!(j.v, 0)
        foreach(entries -> j.v[entries[i]] = 1, j.field.samples)
        row!(j.field.tape.workspace, j.field, j.v, u, t)
        for entries in j.field.samples
            J[entries[i], entries] .= view(j.field.dz, entries)
        end
    end
    return
end

"Whether the samples' blocks in `J` are the whole Jacobian: by one product of either with an arbitrary vector."
function iswhole(J, j::Jacobian{T}, u, t) where {T}
    j.v .= (cos(T(0.7) * i) for i in eachindex(j.v))
    row!(j.field.tape.workspace, j.field, j.v, u, t)
    return isapprox(transpose(J) * j.v, j.field.dz; rtol = sqrt(eps(T)))
end

"What products at one point have in common is computed first, where Python computes them."
settle!(::Workspace, f::TracedField, u, t) = nothing

function settle!(c::Callback, f::TracedField, u, t)
    f.counts[1] += 1
    f.time[1] = t
    copyto!(f.u, u)
    return call!(c, open_function)
end

"The product of the cotangent `v` with the state's Jacobian at `(t, u)`, for which all is settled; left in `field.dz`."
row!(::Workspace, f::TracedField, v, u, t) = vjp!(f, v, u, t)

function row!(c::Callback, f::TracedField, v, u, t)
    f.counts[2] += 1
    copyto!(f.v, v)
    return call!(c, row_function)
end

"""
The derivative of a field in `t`, entry by entry from vector-Jacobian products, at once where Python computes it; none of
them where the operations tell that it is zero.
"""
struct TimeGradient{F<:TracedField,V}
    field::F
    v::V
    zero::Bool
end

TimeGradient(f::TracedField) = TimeGradient(f, fill!(similar(f.dz), 0), !reads_time(f.tape.workspace))

function (g::TimeGradient)(dT, u, p, t)
    rebind!(g.field, p)
    g.zero ? fill!(dT, 0) : slopes!(dT, g.field.tape.workspace, g, u, t)
    return nothing
end

"Whether a field may depend on the time."
reads_time(w::Workspace) = (g = w.kernel.graph; any(i -> istime(g, g.nodes[i]), live(g, g.value, Dict{Int,Int}())))
reads_time(::Callback) = true

function slopes!(dT, ::Workspace, g::TimeGradient, u, t)
    for i in eachindex(g.v)
        fill!(g.v, 0)
        fill!(view(g.v, i:i), 1)
        vjp!(g.field, g.v, u, t)
        copyto!(view(dT, i:i), g.field.dt)
    end
    fill!(g.v, 0)
    return
end

function slopes!(dT, c::Callback, g::TimeGradient, u, t)
    f = g.field
    f.counts[2] += 1
    f.time[1] = t
    copyto!(f.u, u)
    call!(c, slope_function)
    copyto!(dT, f.du)
    return
end

"""
    ode_function(field, solver)

A field as an in-place `ODEFunction` that carries its vector-Jacobian products, and for a solver of stiff fields its
Jacobian or, where that is not wanted, its products with a vector.
"""
function ode_function(f::TracedField, solver::AbstractString)
    w = f.tape.workspace
    free = ismatrixfree(solver)
    kind = !isstiff(solver) ? :explicit : !hasproducts(w) || (free && !hastangent(w)) ? :plain : free ? :free : :stiff
    return get!(() -> make_ode_function(f, Val(kind)), f.functions, kind)
end

make_ode_function(f::TracedField, ::Val; further...) =
    ODEFunction{true,FullSpecialize}(f; vjp = StateProduct(f), vjp_p = ThetaProduct(f), further...)

make_ode_function(f::TracedField, ::Val{:stiff}) = make_ode_function(f, Val(:explicit); derivatives(f)...)

"The derivatives that a field brings to a solver of stiff fields; `device_jacobian.jl` has those of a field on a device."
derivatives(f::TracedField{T,Vector{T}}) where {T} = (; jac = Jacobian(f), tgrad = TimeGradient(f))

# Of a field of kind `:plain` the solver takes differences: it has no tangent, or autograd does not see all of it.
make_ode_function(f::TracedField, ::Val{:free}) =
    make_ode_function(f, Val(:explicit); jvp = tangent_product(f.tape.workspace, f))

hasproducts(::Workspace) = true

# ---- products of the Jacobian with a vector -----------------------------------------------------------------------

"The kernel of a field together with its derivative in one direction, by the kernel of the field and the batch size."
const TANGENTS = Dict{Tuple{UInt,Int},Any}()

"""
    link_tangent(kernel, batch, tangent)

Kernel number `tangent` is that of the field of kernel number `kernel` with its derivative in one direction: its state is
the field's and the direction, its other inputs are the same.
"""
link_tangent(kernel::Int, batch::Int, tangent::Int) =
    (TANGENTS[objectid(KERNELS[kernel]), batch] = KERNELS[tangent]; nothing)

tangent_of(w::Workspace) = get(TANGENTS, (objectid(w.kernel), w.batch), nothing)

hastangent(w::Workspace) = tangent_of(w) !== nothing
hastangent(::Callback) = true

"The product of the state's Jacobian with a vector, as `ODEFunction(jvp = …)` has it."
struct TangentProduct{F<:TracedField}
    field::F
    tangent::F
    bound::Base.RefValue{Int}  # the field's count of bindings when `tangent` was bound
end

tangent_product(w::Workspace, f::F) where {F<:TracedField} =
    TangentProduct{F}(f, Base.invokelatest(tangent_field, tangent_of(w), w), Ref(-1))
tangent_product(c::Callback, f::TracedField) = PythonTangent(f, c)

tangent_field(k::Kernel{T}, w::Workspace{T,Vector{T}}) where {T} =
    make_field(k, w.batch, :joint, Processor(), max(1, length(w.blocks)))
tangent_field(k::Kernel, w::Workspace) = TracedField(Workspace(k, w.batch, similar(w.u, 0)))

function (p::TangentProduct)(out, v, u, θ, t)
    f, g, n = rebind!(p.field, θ), p.tangent, length(p.field.u)
    if p.bound[] != f.counts[3]
        bind!(g, f.θ)
        p.bound[] = f.counts[3]
    end
    f.counts[1] += 1
    count!(f.watch)
    copyto!(g.u, 1, u, 1, n)
    copyto!(g.u, n + 1, v, 1, n)
    g.value(eltype(g.u)(t))
    copyto!(out, 1, g.du, n + 1, n)
    return nothing
end

"The same of a field that Python evaluates."
struct PythonTangent{F<:TracedField,C<:Callback}
    field::F
    callback::C
end

function (p::PythonTangent)(out, v, u, θ, t)
    f = rebind!(p.field, θ)
    f.counts[1] += 1
    f.time[1] = t
    copyto!(f.u, u)
    copyto!(f.v, v)
    call!(p.callback, tangent_function)
    copyto!(out, f.du)
    return nothing
end
