/* A QEMU plugin (API version 1) that counts the guest's instructions and tells the guest on request.
 *
 * The guest asks with getpriority(MAGIC, n), which the kernel refuses and which costs nothing; the count so far is then
 * written to the file named by `out=`. Threads share one counter that is not atomic: exact for one guest thread at a
 * time. Only the declarations that are needed are here, so that no header of QEMU is.
 */
typedef unsigned long long u64;
typedef long long i64;
typedef u64 plugin_id;
struct tb;

extern void qemu_plugin_register_vcpu_tb_trans_cb(plugin_id, void (*)(plugin_id, struct tb *));
extern void qemu_plugin_register_vcpu_tb_exec_inline(struct tb *, int op, void *counter, u64 amount);
extern unsigned long qemu_plugin_tb_n_insns(const struct tb *);
extern void qemu_plugin_register_vcpu_syscall_cb(
    plugin_id, void (*)(plugin_id, unsigned int, i64, u64, u64, u64, u64, u64, u64, u64, u64));
extern int open(const char *, int, ...);
extern long pwrite(int, const void *, unsigned long, long);
extern int strncmp(const char *, const char *, unsigned long);

enum { ADD_U64 = 0, GETPRIORITY = 141, MAGIC = 0x45444745, WRONLY_CREAT = 0101 };

int qemu_plugin_version = 1;
static u64 instructions;
static int out = -1;

static void translated(plugin_id id, struct tb *block)
{
    (void)id;
    qemu_plugin_register_vcpu_tb_exec_inline(block, ADD_U64, &instructions, qemu_plugin_tb_n_insns(block));
}

static void called(plugin_id id, unsigned int cpu, i64 number, u64 a1, u64 a2, u64 a3, u64 a4, u64 a5, u64 a6, u64 a7,
                   u64 a8)
{
    (void)id; (void)cpu; (void)a2; (void)a3; (void)a4; (void)a5; (void)a6; (void)a7; (void)a8;
    if (number == GETPRIORITY && (a1 & 0xffffffffu) == MAGIC && pwrite(out, &instructions, 8, 0) != 8)
        out = -1;
}

int qemu_plugin_install(plugin_id id, const void *info, int count, char **arguments)
{
    int at;
    (void)info;
    for (at = 0; at < count; at++)
        if (!strncmp(arguments[at], "out=", 4))
            out = open(arguments[at] + 4, WRONLY_CREAT, 0600);
    if (out < 0)
        return 1;
    qemu_plugin_register_vcpu_tb_trans_cb(id, translated);
    qemu_plugin_register_vcpu_syscall_cb(id, called);
    return 0;
}
