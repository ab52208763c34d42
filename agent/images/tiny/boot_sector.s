# The boot sector of `tiny`: loads a Linux kernel and its first file system by BIOS calls and jumps into the kernel.
# The bytes in disk.py come from `as --32 boot_sector.s -o x.o && ld -m elf_i386 -Ttext 0x7c00 --oformat binary x.o`.
#
# Memory: 0x7c00 this code, 0x8000 the command line, 0x10000 the kernel's real-mode part, 0x20000 a buffer,
# 0x100000 the kernel, and the first file system below the end of memory, at most below 768 MiB.
        .code16
        .globl  _start
        .set    BUFFER, 0x2000                  # segments
        .set    SETUP, 0x1000
        .set    CHUNK, 64                       # sectors that are read and moved at once
_start:
        ljmp    $0, $begin
begin:
        cli
        xorw    %ax, %ax
        movw    %ax, %ds
        movw    %ax, %es
        movw    %ax, %ss
        movw    $0x7c00, %sp
        sti
        cld
        movb    %dl, drive

        movl    $1, %eax                        # the command line is in the second sector
        movw    $1, %cx
        movw    $0x800, %bx
        call    read
        movl    setup_sector, %eax
        movw    setup_count, %cx
        movw    $SETUP, %bx
        call    read

        movl    kernel_sector, %eax
        movl    kernel_count, %ecx
        movl    $0x100000, %edi
        call    load

        movw    $0xe801, %ax                    # memory above 16 MiB, in blocks of 64 KiB, to dx
        int     $0x15
        jc      fail
        movzwl  %dx, %edi
        addl    $0x100, %edi
        cmpl    $0x3000, %edi
        jbe     1f
        movl    $0x3000, %edi
1:      shll    $16, %edi
        subl    $0x100000, %edi                 # the BIOS keeps its tables at the very end
        subl    files_size, %edi
        andl    $0xfffff000, %edi
        movw    $SETUP, %ax
        movw    %ax, %fs
        movl    %edi, %fs:0x218                 # ramdisk_image of the boot protocol
        movl    files_sector, %eax
        movl    files_count, %ecx
        call    load

        cli
        movw    $SETUP, %ax
        movw    %ax, %ds
        movw    %ax, %es
        movw    %ax, %fs
        movw    %ax, %gs
        movw    %ax, %ss
        movw    $0xe000, %sp
        ljmp    $SETUP + 0x20, $0

# Read cx sectors from sector eax to segment bx.
read:   movl    %eax, packet + 8
        movw    %cx, packet + 2
        movw    %bx, packet + 6
        movw    $packet, %si
        movb    drive, %dl
        movb    $0x42, %ah
        int     $0x13
        jc      fail
        ret

# Load ecx sectors from sector eax to the address edi.
load:   movl    $CHUNK, %edx
        cmpl    %edx, %ecx
        jae     1f
        movl    %ecx, %edx
1:      pushal
        movw    %dx, %cx
        movw    $BUFFER, %bx
        call    read
        popal
        pushal
        movl    %edi, %eax
        movw    %ax, target + 2
        shrl    $16, %eax
        movb    %al, target + 4
        movb    %ah, target + 7
        movw    %dx, %cx
        shlw    $8, %cx                         # a sector has 256 words
        movw    $descriptors, %si
        movb    $0x87, %ah
        int     $0x15
        jc      fail
        popal
        addl    %edx, %eax
        subl    %edx, %ecx
        shll    $9, %edx
        addl    %edx, %edi
        testl   %ecx, %ecx
        jnz     load
        ret

# Tell the serial line, and stop.
fail:   movw    $message, %si
1:      lodsb
        testb   %al, %al
        jz      2f
        movw    $0x3f8, %dx
        outb    %al, %dx
        jmp     1b
2:      hlt
        jmp     2b

message:
        .asciz  "tiny: the disk cannot be read\r\n"
drive:  .byte   0
        .balign 4
packet: .byte   16, 0
        .word   0, 0, 0
        .quad   0
descriptors:
        .quad   0, 0
        .word   0xffff, 0
        .byte   0x02, 0x93, 0, 0                # from 0x20000
target: .word   0xffff, 0
        .byte   0, 0x93, 0, 0
        .quad   0, 0

        .org    400                             # disk.py writes these
setup_sector:   .long   0
setup_count:    .word   0
kernel_sector:  .long   0
kernel_count:   .long   0
files_sector:   .long   0
files_count:    .long   0
files_size:     .long   0
