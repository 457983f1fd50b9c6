# The fields that are kept, with their memory, for the next solve of the like.

"A field that is kept, and when it was last asked for."
mutable struct KeptField
    const field::Any
    used::Int
end

"""
Fields by their kernel, batch, role (what their products are), device and threads; and those of independent samples, one for each
thread, by their kernel.
"""
const FIELDS = Dict{Tuple{Int,Int,Symbol,Int,Int},KeptField}()
const SAMPLE_FIELDS = Dict{Int,Vector{Any}}()
const ASKED = Ref(0)

"How many of either are kept, and how many bytes they may hold while there are more than two: a model's, and its loss's or a test's."
const MAX_FIELDS, MAX_BYTES = 64, Ref(2^30)

"""
The field of a kernel for a batch size, on a device, for as many threads as may work. Fields that a solve binds side by
side have roles of their own, since the kernel may be the same.
"""
function field_for(kernel::Int, batch::Int, products::Symbol, device::Int; role::Symbol = products)
    key = (kernel, batch, role, device, working_threads())
    kept = get(FIELDS, key, nothing)
    if kept === nothing
        field = Base.invokelatest(make_field, KERNELS[kernel], batch, products, DEVICES[device], working_threads())
        kept = FIELDS[key] = KeptField(field, ASKED[] += 1)
        forget_oldest!()
    else
        kept.used = ASKED[] += 1
        make_room!(kept.field.tape, all_tapes())
    end
    return kept.field
end

function make_field(k::Kernel{T}, batch, products, device::Device = Processor(), threads = 1) where {T}
    device isa Processor || return TracedField(Workspace(k, batch, empty_vector(device, T)); products)
    within = threads_within(k, batch, threads)
    if within > 1
        # OpenBLAS has threaded products of several callers wait for one another, and its threads keep processors from Julia's.
        shared = Workspace(Kernel{T}(k.graph; batch, threads = within), batch; alone = true)
        return TracedField(shared; products, threads)
    end
    return TracedField(Workspace(k, batch; part_batch(k, batch, threads)...); products, threads)
end

"Fields for one sample, one for each thread that may work."
function sample_fields(kernel::Int)
    if !haskey(SAMPLE_FIELDS, kernel)
        held() = sum(bytes_held, Iterators.flatten(values(SAMPLE_FIELDS)); init = 0)
        if length(SAMPLE_FIELDS) >= MAX_FIELDS || (length(SAMPLE_FIELDS) > 1 && held() > MAX_BYTES[])
            foreach(close!, (f.tape for f in Iterators.flatten(values(SAMPLE_FIELDS))))
            empty!(SAMPLE_FIELDS)
        end
    end
    fields = get!(() -> Any[], SAMPLE_FIELDS, kernel)
    tasks = working_threads()
    while length(fields) < tasks
        push!(fields, Base.invokelatest(make_field, KERNELS[kernel], 1, :joint))
    end
    foreach(f -> make_room!(f.tape, all_tapes()), fields)
    return identity.(fields[1:tasks])  # of the fields' own type
end

"The tapes of all fields that are kept."
all_tapes() = (f.tape for f in Iterators.flatten(((k.field for k in values(FIELDS)), values(SAMPLE_FIELDS)...)))

"Forget the fields that have not been asked for the longest, while there are too many, or more than two that hold too much."
function forget_oldest!()
    held = Dict(key => bytes_held(kept.field) for (key, kept) in FIELDS)
    total = sum(values(held))
    for key in sort!(collect(keys(FIELDS)); by = key -> FIELDS[key].used)
        length(FIELDS) > MAX_FIELDS || (length(FIELDS) > 2 && total > MAX_BYTES[]) || break
        close!(pop!(FIELDS, key).field.tape)
        total -= held[key]
    end
    return
end

"Forget the fields of a kernel."
function forget_fields!(kernel::Int)
    for key in filter(key -> first(key) == kernel, collect(keys(FIELDS)))
        close!(pop!(FIELDS, key).field.tape)
    end
    return
end

"Forget all fields."
function forget_fields!()
    foreach(close!, all_tapes())
    foreach(empty!, (FIELDS, SAMPLE_FIELDS))
    return
end
