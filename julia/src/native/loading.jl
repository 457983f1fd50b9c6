# Loads packages when they are first needed, whoever has come to handle the ends of child processes by then.
#
# Compiling a package runs processes, and libuv hears of their end by its handler of SIGCHLD. A library in Python that
# sets one of its own, as PyTorch's data loaders with workers do, replaces it, and Julia would wait for ever.

const SIGCHLD = Cint(Sys.islinux() ? 17 : 20)

"Libuv's handler as `struct sigaction` has it, kept when Python starts Julia; `nothing` where there is none."
const CHILD_HANDLER = Ref{Union{Nothing,Vector{UInt8}}}(nothing)

"Note libuv's handler, which it sets with its first process."
function keep_child_handler!()
    Sys.isunix() || return
    try
        run(pipeline(`/bin/sh -c :`; stdin = devnull, stdout = devnull, stderr = devnull); wait = false)
    catch error
        error isa Base.IOError || rethrow()
        return  # where no process may be started, none has to be waited for
    end
    CHILD_HANDLER[] = set_child_handler(nothing)
    return
end

"Set the handler, and return the one before; `nothing`: set none."
function set_child_handler(handler::Union{Nothing,Vector{UInt8}})
    before = zeros(UInt8, 256)  # `struct sigaction` is shorter everywhere
    new = handler === nothing ? C_NULL : pointer(handler)
    GC.@preserve handler ccall(:sigaction, Cint, (Cint, Ptr{UInt8}, Ptr{UInt8}), SIGCHLD, new, before)
    return before
end

"Load packages, with libuv's handler in its place meanwhile, and no collection of garbage, which takes a fifth of the time."
function load(packages)
    all(id -> haskey(Base.loaded_modules, id), packages) && return
    own = CHILD_HANDLER[]
    theirs = own === nothing ? nothing : set_child_handler(own)
    collects = GC.enable(false)
    try
        foreach(Base.require, packages)
    finally
        GC.enable(collects)
        theirs === nothing || set_child_handler(theirs)
    end
    return
end
